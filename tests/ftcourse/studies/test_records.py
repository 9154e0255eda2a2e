"""Records of a study that is cut off and goes on, in this process and in others."""

import dataclasses
import json
import os
import sys

import pytest

from ftcourse.studies.records import read_records, run_missing, sort_records, trial_of, write_records


@dataclasses.dataclass(frozen=True)
class Setting:
    lr: float
    seed: int = 0


SETTINGS = [Setting(lr, seed) for lr in (0.1, 0.2) for seed in (0, 1)]


def run(setting):
    return {**dataclasses.asdict(setting), "score": 10 * setting.lr}


def test_a_record_gives_back_its_setting(tmp_path):
    write_records(tmp_path / "runs.jsonl", [run(setting) for setting in SETTINGS])
    records = read_records(tmp_path / "runs.jsonl")
    assert [trial_of(record, Setting) for record in records] == SETTINGS
    assert read_records(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_missing_is_done_and_what_was_cut_off_is_done_again(tmp_path, workers, monkeypatch):
    monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(sys.executable))  # which starts warm
    monkeypatch.setattr("multiprocessing.util._args_from_interpreter_flags", list)  # but not given flags
    path = tmp_path / "new folder" / "runs.jsonl"
    run_missing(SETTINGS[:2], run, path, "first", workers)
    first = path.read_text()
    kept, cut = first.splitlines()
    path.write_text(first[:-5])  # killed while the second line was written
    records = run_missing(SETTINGS, run, path, "second", workers)
    assert path.read_text().startswith(kept + "\n")
    assert records == read_records(path) and len(records) == len(SETTINGS)
    assert {trial_of(record, Setting) for record in records} == set(SETTINGS)
    assert json.loads(cut) in records[1:]


def test_with_one_worker_runs_keep_their_order_and_none_is_made_twice(tmp_path):
    done = []

    def counted(setting):
        done.append(setting)
        return run(setting)

    run_missing(SETTINGS[2:], counted, tmp_path / "runs.jsonl", "first")
    run_missing(SETTINGS, counted, tmp_path / "runs.jsonl", "second")
    assert done == SETTINGS[2:] + SETTINGS[:2]


def test_records_are_kept_when_a_run_fails(tmp_path):
    def fails_at_the_third(setting):
        if setting == SETTINGS[2]:
            raise RuntimeError("no memory")
        return run(setting)

    with pytest.raises(RuntimeError, match="no memory"):
        run_missing(SETTINGS, fails_at_the_third, tmp_path / "runs.jsonl", "study")
    assert [trial_of(r, Setting) for r in read_records(tmp_path / "runs.jsonl")] == SETTINGS[:2]


def test_the_order_does_not_depend_on_which_run_ended_first():
    records = [run(setting) for setting in SETTINGS]
    assert sort_records(records[::-1], Setting) == records != records[::-1]
