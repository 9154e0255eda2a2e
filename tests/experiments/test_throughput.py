"""Throughput beside TRL: every verdict comes from the raw runs, and both programs do train the same batches."""

import json
from dataclasses import replace

import pytest

from experiments.real_model.compare import single_turns, train
from experiments.real_model.report import LOSS_TOLERANCE, gap
from experiments.real_model.worker import FTKIT, TRL, TRL_KEEPING, Settings
from experiments.throughput import __main__ as command
from experiments.throughput import report
from experiments.throughput.__main__ import Study
from ftkit.models import data_dir


def played(contender: str, seconds: float, study: str = "pocket-base, 1 process", **values) -> dict:
    """A record of a run that never was: a test's, and nothing else's."""
    record = {"study": study, "contender": contender, "model": "x", "steps": 4, "batch_size": 2, "tokens": [10] * 4}
    record |= {"machine": "x86_64, 2 cores", "processor": "P", "torch": "0", "date": "1970-01-01", "load": [1.0, 1.0]}
    record |= {"versions": {"trl": "0"}, "losses": [4.0, 3.0, 2.0, 1.0], "peak_rss_bytes": 2**20}
    return record | {"seconds": [9.0, 9.0, seconds], "cpu_seconds": [9.0, 9.0, seconds]} | values


def test_a_target_is_met_or_missed_by_the_median_of_the_runs():
    runs = [played(FTKIT, s) for s in (1.0, 1.0, 5.0)] + [played(TRL, s) for s in (1.3, 1.4, 1.3)]
    assert "1.30 times the tokens per second of TRL's default (0.26 to 1.40; wanted: 1.3; met)" in report.markdown(runs)
    slow = [played(FTKIT, 1.0), played(TRL, 1.29), played(TRL_KEEPING, 0.9)]
    text = report.markdown(slow)
    assert "1.29 times" in text and "missed" in text and "Against TRL without recomputation it is 0.90 times" in text
    ranks = [played(FTKIT, 1.0, "pocket-base, 2 ranks"), played(TRL, 1.0, "pocket-base, 2 ranks")]
    assert "wanted: 1; met" in report.markdown(ranks)
    assert "wanted: 1; missed" in report.markdown([ranks[0] | {"seconds": [9.0, 9.0, 1.1]}, ranks[1]])


def test_other_losses_are_said_so():
    runs = [played(FTKIT, 1.0), played(TRL, 2.0)]
    assert "Losses of all 4 steps: equal to 1e-05" in report.markdown(runs)
    runs[1]["losses"] = [4.0, 3.0, 2.0, 1.001]
    assert "not equal: apart by 1.0e-03" in report.markdown(runs)


def test_a_round_that_was_broken_off_does_not_count():
    runs = [played(FTKIT, 1.0), played(TRL, 2.0), played(TRL, 4.0)]
    assert "| pocket-base, 1 process | TRL | 1 |" in report.markdown(runs)
    assert "times" not in report.markdown(runs[:1]) and "No record is stored" in report.markdown([])


def test_a_shared_machine_is_said_so():
    runs = [played(FTKIT, 1.0), played(TRL, 2.0)]
    assert "shared" not in report.markdown(runs)
    assert "in 1 of 2 runs other programs waited" in report.markdown([runs[0], runs[1] | {"load": [1.0, 9.0]}])


def test_contenders_take_turns_there_and_back():
    order = Study("x", 1, (FTKIT, TRL, TRL_KEEPING)).order(2)
    assert order == [FTKIT, TRL, TRL_KEEPING, TRL_KEEPING, TRL, FTKIT]
    assert {study.name for study in command.STUDIES} == set(report.TARGETS)


def test_the_command_does_what_is_missing_and_again_replaces(tmp_path, monkeypatch):
    out, done, name = tmp_path / "out.jsonl", [], "pocket-base, 1 process"
    monkeypatch.setattr(command, "train", lambda s: done.append(s.contender) or {**played(s.contender, 1.0), "load": 1})
    out.write_text(json.dumps(played(FTKIT, 3.0, name)) + "\n" + json.dumps(played(TRL, 3.0, "another")) + "\n")
    given = ["--studies", name, "--runs", "1", "--out", str(out)]
    assert command.main(given) == 0 == command.main(given)
    assert done == [TRL, TRL_KEEPING]
    assert command.main([*given, "--again"]) == 0
    assert done[2:] == [FTKIT, TRL, TRL_KEEPING] and len(command.stored(out)) == 4


@pytest.mark.thorough
@pytest.mark.parametrize("ranks", [1, 2])
def test_both_programs_train_the_same_batches(ranks, tmp_path):
    data = single_turns(data_dir() / "chat" / "train.jsonl", tmp_path / "data.jsonl")
    sizes = {"steps": 4, "lr": 1e-3, "batch_size": 8, "micro_batch_size": 2, "ranks": ranks}
    settings = Settings(FTKIT, str(data_dir() / "pocket-base"), str(data), "full", **sizes)
    ours, theirs = train(settings), train(replace(settings, contender=TRL))
    assert gap(ours["losses"], theirs["losses"]) <= LOSS_TOLERANCE
    assert len(ours["seconds"]) == len(theirs["seconds"]) == 3 and min(ours["cpu_seconds"]) > 0
    other = train(replace(settings, seed=1))
    assert gap(ours["losses"], other["losses"]) > 100 * LOSS_TOLERANCE  # the negative control
