"""A rehearsal of two ranks: a killed one resumes, each run is what one process computes, and a wrong mask is not."""

import json

import pytest

from ftcourse.runs import LaunchError, start
from ftkit.finetune import train

COMMON = ["--lr", "1e-3", "--batch_size", "8", "--micro_batch_size", "4", "--max_length", "64", "--max_steps", "5"]
FLAGS, LORA = ["--optimizer", "child-tuning", *COMMON], ["--method", "lora", "--lora_r", "4", *COMMON]


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_killed_resumed_and_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = {"F": [*FLAGS, "--save_every", "1"], "LoRA": LORA, "wrong": FLAGS}
    runs = {name: [*flags, "--output", name] for name, flags in runs.items()}
    plan = {"runs": runs, "same_masks": ["wrong"], "kill": {"run": "F", "rank": 1, "step": 4}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    said = start("-m", "ftcourse.rehearsal", "plan.json", ranks=2, max_restarts=1).result()
    assert said.count("== F, attempt 0") == said.count("== F, attempt 1") == 1
    assert "== LoRA, attempt 1" in said and "== LoRA, attempt 0" not in said
    assert said.count("measured (") == 3  # a run that has not been killed tells its memory
    train.main([*FLAGS, "--output", "alone"])
    train.main([*LORA, "--output", "lora-alone"])
    alone = losses(tmp_path / "alone")
    assert losses(tmp_path / "F") == pytest.approx(alone, abs=1e-4) and len(alone) == 5
    assert losses(tmp_path / "LoRA") == pytest.approx(losses(tmp_path / "lora-alone"), abs=1e-4)
    assert losses(tmp_path / "wrong") != pytest.approx(alone, abs=1e-3)


def test_a_plan_that_the_program_refuses_fails(tmp_path):
    plan = {"runs": {"a": ["--output", str(tmp_path / "a"), "--batch_size", "0"]}}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(LaunchError, match="--batch_size is 0"):
        start("-m", "ftcourse.rehearsal", str(tmp_path / "plan.json"), ranks=None).result()
