"""A rehearsal of two ranks: a killed one resumes, each run is what one process computes, and a wrong mask is not."""

import json

import pytest

from ftcourse.rehearsal import run_alone
from ftcourse.runs import LaunchError, start

pytestmark = pytest.mark.thorough

COMMON = ["--lr", "3e-3", "--batch_size", "8", "--micro_batch_size", "4", "--max_length", "64", "--max_steps", "8"]
FLAGS = ["--optimizer", "child-tuning", *COMMON]


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_killed_resumed_and_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs = {"F": [*FLAGS, "--save_every", "1"], "wrong": [*FLAGS, "--estimate_memory", "False"]}
    runs = {name: [*flags, "--output", name] for name, flags in runs.items()}
    plan = {"runs": runs, "same_masks": ["wrong"], "kill": {"run": "F", "rank": 1, "step": 4}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    said = start("-m", "ftcourse.rehearsal", "plan.json", ranks=2, max_restarts=1).result()
    assert said.count("== F, attempt 0") == said.count("== F, attempt 1") == 1
    assert "== wrong, attempt 1" in said and "== wrong, attempt 0" not in said
    assert "measured (" in said.split("== F, attempt 1")[1].split("== wrong")[0]
    assert run_alone([*FLAGS, "--output", "alone"]).startswith("the model is in alone/model")
    assert capsys.readouterr().out == ""
    alone = losses(tmp_path / "alone")
    assert losses(tmp_path / "F") == pytest.approx(alone, abs=1e-4) and len(alone) == 8
    assert losses(tmp_path / "wrong") != pytest.approx(alone, abs=1e-3)


def test_a_plan_that_the_program_refuses_fails(tmp_path):
    plan = {"runs": {"a": ["--output", str(tmp_path / "a"), "--batch_size", "0"]}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(LaunchError, match="--batch_size is 0"):
        start("-m", "ftcourse.rehearsal", str(tmp_path / "plan.json"), ranks=None).result()
