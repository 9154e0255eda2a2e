"""Tasks, runs and the plan of the child-tuning study, on pocket-base and on a foreign tiny model."""

import json
import math
import random
from dataclasses import replace
from itertools import islice

import pytest
import torch

from ftcourse.datasets import low_resource_chat
from ftcourse.studies import child_tuning
from ftcourse.studies import child_tuning as command
from ftcourse.studies.child_tuning import (
    ADAMW,
    CONTROL,
    DEPENDENT,
    FREE,
    Trial,
    best_rate,
    final,
    make_optimizer,
    run_trial,
    tuning,
)
from ftcourse.studies.records import read_records, trial_of
from ftcourse.studies.tasks import load_task, training_steps
from ftkit.evaluate import generate_answers
from ftkit.models import data_dir, load_base
from tests import tiny

METHODS = ((ADAMW, 1.0), (CONTROL, 0.3), (FREE, 0.3), (DEPENDENT, 0.1))
RECORDS = read_records(data_dir() / "results" / "child_tuning.jsonl")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return str(tiny.save_foreign(tmp_path_factory.mktemp("foreign")))


@pytest.fixture
def one_epoch(monkeypatch):
    """Of one epoch, judged by few rows, which are more than one forward pass takes."""
    monkeypatch.setattr("ftcourse.studies.tasks.epochs", lambda n: 1)
    monkeypatch.setattr("ftcourse.studies.tasks.EVAL_ROWS", 8)
    monkeypatch.setattr("ftcourse.studies.tasks.TRUTH_ROWS", 10)
    monkeypatch.setattr(
        "ftcourse.studies.tasks.low_resource_chat",
        lambda n, seed: {
            split: rows[: n if split == "train" else 10] for split, rows in low_resource_chat(n, seed).items()
        },
    )


@pytest.mark.parametrize("task", ["chat-8", "truth-8"])
@pytest.mark.parametrize(("method", "p"), METHODS)
def test_every_method_runs_on_a_foreign_model(task, method, p, foreign, one_epoch):
    record = run_trial(Trial(task, method, p, 1e-3, 0), foreign)
    again = run_trial(Trial(task, method, p, 1e-3, 0), foreign)
    assert record["curves"] == again["curves"] != run_trial(Trial(task, method, p, 1e-3, 1), foreign)["curves"]
    assert all(len(curve) == 1 and math.isfinite(curve[0]) for curve in record["curves"].values())
    assert trial_of(record, Trial) == Trial(task, method, p, 1e-3, 0)


def test_the_score_is_what_greedy_answers_get():
    """Teacher forcing and real generation agree on which answers are exactly right, on half-trained weights."""
    task = load_task("chat-96", 0)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-3)
    for _ in range(6):
        for first in range(0, 96, 16):
            task.loss(task.model, task.train[first : first + 16]).backward()
            optimizer.step()
            optimizer.zero_grad()
    task.model.eval()
    with torch.no_grad():
        score = task.evaluate(task.model)["test_exact"]
    rows = low_resource_chat(96, 0)["test"]
    _, tokenizer = load_base()
    given = generate_answers(task.model, tokenizer, [row["messages"][:1] for row in rows], max_new_tokens=40)
    right = [a.text == row["messages"][1]["content"] and a.stopped for a, row in zip(given, rows, strict=True)]
    assert 0 < sum(right) < len(rows)
    # A near-tie of two tokens may fall otherwise in a padded batch.
    assert sum(right) / len(rows) == pytest.approx(score, abs=1.5 / len(rows))


def test_truth_is_judged_at_the_last_token_of_each_row():
    """The loss of a padded batch is the mean of its rows' own."""
    task = load_task("truth-8", 0)
    rows = task.train[:4]
    assert len({len(row["input_ids"]) for row in rows}) > 1
    with torch.no_grad():
        alone = [task.loss(task.model, [row]).item() for row in rows]
        assert task.loss(task.model, rows).item() == pytest.approx(sum(alone) / 4, rel=1e-4)


def test_a_head_is_trained_densely_and_the_body_by_its_mask(foreign):
    task = load_task("truth-8", 0, foreign)
    optimizer = make_optimizer(Trial("truth-8", DEPENDENT, 0.1, 1e-2, 0), task)
    before = {name: param.detach().clone() for name, param in task.model.named_parameters()}
    task.loss(task.model, task.train).backward()
    optimizer.step()
    moved = {name: (param != before[name]).float().mean() for name, param in task.model.named_parameters()}
    assert moved.pop("score.weight") == 1
    body = sum(moved[name] * before[name].numel() for name in moved) / sum(before[n].numel() for n in moved)
    assert 0.05 < body <= 0.11


def test_other_tasks_are_refused():
    for name in ("chat", "chat-x", "songs-10"):
        with pytest.raises(ValueError, match="should be chat-N or truth-N"):
            load_task(name, 0)


def test_the_command_resumes_and_a_line_cut_off_is_done_again(foreign, tmp_path, one_epoch, monkeypatch, capsys):
    monkeypatch.setattr(child_tuning, "METHODS", ((ADAMW, 1.0), (FREE, 0.5)))
    monkeypatch.setattr(child_tuning, "RATES", (1e-3,))
    done = []
    monkeypatch.setattr(command, "run_trial", lambda setting, base: done.append(setting) or run_trial(setting, base))
    output = tmp_path / "out" / "study.jsonl"
    arguments = ["--tasks", "chat-8", "--seeds", "2", "--model", foreign, "--workers", "1"]
    arguments += ["--output", str(output)]
    command.main(arguments)
    whole = read_records(output)
    assert len(whole) == len(done) == 2 * 2 + 2 * 3  # tuning, then AdamW, F and F's control
    assert {r["lr"] for r in whole if r["method"] == CONTROL} == {math.sqrt(0.5) * 1e-3}
    output.write_text(output.read_text()[:-20])
    done.clear()
    command.main(arguments)
    assert len(done) == 1 and [r["curves"] for r in read_records(output)] == [r["curves"] for r in whole]
    assert str(output) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "songs-9"], "chat-N or truth-N"),
        (["--tasks", "chat-9999"], "must be between 1 and"),
        (["--model", "./nowhere"], "no model folder"),
        (["--workers", "0"], "at least 1"),
        (["--seeds", "0"], "at least 1"),
    ],
)
def test_what_cannot_work_is_refused_before_any_run(arguments, said, tmp_path, capsys):
    output = tmp_path / "study.jsonl"
    with pytest.raises(SystemExit):
        command.main([*arguments, "--output", str(output)])
    assert said in capsys.readouterr().err and not output.exists()


def tuned(task: str, scores: dict) -> list[dict]:
    """Tuning records whose score at the end is given by (method, p, lr)."""
    return [
        {**setting.__dict__, "curves": {"test_exact": [scores.get((setting.method, setting.p, setting.lr), 0.1)],
                                        "test_loss": [1.0 - setting.lr]}}
        for setting in tuning(task)
    ]  # fmt: skip


def test_the_best_rate_has_the_best_score_then_the_least_loss():
    records = tuned("chat-96", {(FREE, 0.3, 8e-4): 0.5})
    assert best_rate(records, "chat-96", FREE, 0.3) == 8e-4
    assert best_rate(records, "chat-96", ADAMW, 1.0) == max(child_tuning.RATES)  # all score alike
    settings = final(records, "chat-96", 3)
    assert len(settings) == len(set(settings)) == 3 * (len(child_tuning.METHODS) + len(child_tuning.FREE_P))
    assert Trial("chat-96", CONTROL, 0.3, math.sqrt(0.3) * 8e-4, 2) in settings
    with pytest.raises(ValueError, match="no 2 tuning runs at rates"):
        best_rate(records[1:], "chat-96", ADAMW, 1.0)


def test_every_run_of_the_plan_is_stored():
    assert RECORDS, "python -m ftcourse.studies.child_tuning stores them"
    wanted = [s for task, seeds in child_tuning.SEEDS.items() for s in tuning(task) + final(RECORDS, task, seeds)]
    assert sorted(map(repr, wanted)) == sorted(repr(trial_of(record, Trial)) for record in RECORDS)


def first_epochs(monkeypatch, count: int, setting: Trial) -> dict:
    """The record of a run on chat-96 that stops early, on the schedule of the whole: its curves begin as the whole's.

    An epoch has 6 steps."""
    monkeypatch.setattr(
        "ftcourse.studies.child_tuning.training_steps", lambda *given: islice(training_steps(*given), 6 * count)
    )
    return run_trial(setting)


def test_a_stored_run_drawn_at_random_repeats(monkeypatch):
    """One of the quick ones. Processors round otherwise, and training magnifies that, epoch by epoch."""
    stored = random.choice([record for record in RECORDS if record["task"] == "chat-96"])
    again = run_trial(setting := trial_of(stored, Trial))
    other = first_epochs(monkeypatch, 1, replace(setting, seed=setting.seed + 1))
    first = [record["curves"]["train_loss"][0] for record in (stored, again, other)]
    assert first[1] == pytest.approx(first[0], rel=1e-3), json.dumps(stored)
    assert first[2] != pytest.approx(first[0], rel=1e-3)
    ends = [record["curves"]["test_loss"][-1] for record in (stored, again)]
    assert ends[1] == pytest.approx(ends[0], rel=0.1), json.dumps(stored)
