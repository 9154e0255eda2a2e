"""The record of the real model's runs, against figures read from it another way, and with faults put in."""

import json

import pytest

from ftcourse.studies.lifecycle import PAIRS, Lifecycle
from ftkit.models import data_dir

FILE = data_dir() / "results" / "real_model.json"


def changed(tmp_path, change) -> Lifecycle:
    stored = json.loads(FILE.read_text())
    change(stored["lifecycle"]["runs"])
    path = tmp_path / "real.json"
    path.write_text(json.dumps(stored))
    return Lifecycle(path)


def test_runs_agree_with_their_pairs_and_a_changed_loss_does_not(tmp_path):
    assert all(Lifecycle().loss_gap(name) < 1e-5 for name in PAIRS)

    def raise_one(runs):
        runs["full, 2 ranks"]["losses"][2] += 0.25

    assert changed(tmp_path, raise_one).loss_gap("full, 2 ranks") == pytest.approx(0.25, abs=1e-5)


def test_memory_is_read_in_its_unit():
    found = Lifecycle()
    estimated, measured = found.memory("full, 1 process")
    assert estimated == 2.38 * 2**30 and measured == estimated
    assert found.memory("lora, 2 ranks")[1] == pytest.approx(696.53 * 2**20)


def test_time_is_predicted_from_early_steps(tmp_path):
    def steady(runs):
        runs["lora, 1 process"]["seconds"] = [9.0, 2.0, 2.0, 3.0, 2.0, 4.0]

    found = changed(tmp_path, steady)
    assert found.predicted_seconds("lora, 1 process") == (12.0, 22.0)
    assert found.step_seconds("lora, 1 process") == 2.0


def test_the_merge_and_the_table():
    found = Lifecycle()
    assert found.greedy_differences() == (0, 173)
    lines = found.table().splitlines()
    assert len(lines) == 1 + len(found.runs) and lines[3].split()[-2:] == ["868", "881"]
