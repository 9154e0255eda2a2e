"""The optimizer study: its plan, its optimizers, its stored runs, and one of them drawn at random done again."""

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch

from ftcourse.studies import optimizer as study
from ftcourse.studies.optimizer import EVERYTHING, LONG_WARMUP, STEPS, Trial, plan, run
from ftcourse.studies.records import read_records, trial_of
from ftcourse.studies.tasks import BATCH_SIZE, load_task, training_steps
from ftkit.batching import steps_per_epoch
from ftkit.models import data_dir
from tests.tiny import foreign_model, save_foreign

RUNS = read_records(data_dir() / "results" / "optimizer.jsonl")


def test_the_plan_has_whole_seeds_and_changes_few_things_at_a_time():
    settings = plan(2)
    assert len(set(settings)) == len(settings) == 2 * len(plan(1))
    assert [s.seed for s in settings] == sorted(s.seed for s in settings)  # cut short, it has whole seeds
    for setting in plan(1):
        usual = vars(Trial(0))
        changed = {name for name, value in vars(setting).items() if value != usual[name]}
        assert len(changed) <= 2 or changed == {"lr", "schedule", "warmup"}
    assert {setting.model for setting in plan(1, "other")} == {"other"}


@pytest.mark.parametrize("name", STEPS)
def test_the_long_warmup_is_as_many_steps_on_every_task(name):
    task = load_task(name, 0)
    assert task.epochs * steps_per_epoch(task.train, BATCH_SIZE) == STEPS[name]
    (setting,) = [s for s in plan(1) if s.task == name and s.warmup not in (0.0, 0.1)]
    assert round(setting.warmup * STEPS[name]) == LONG_WARMUP


@pytest.mark.parametrize(
    ("setting", "kind", "decays"),
    [
        (Trial(0), torch.optim.AdamW, {0.01, 0.0}),
        (Trial(0, decays=EVERYTHING, weight_decay=0.1), torch.optim.AdamW, {0.1}),
        (Trial(0, optimizer="sgd", lr=1e-2), torch.optim.SGD, {0.01, 0.0}),
    ],
)
def test_the_optimizer_is_the_one_asked_for(setting, kind, decays):
    optimizer = study.make_optimizer(foreign_model(), setting)
    assert type(optimizer) is kind
    assert {group["weight_decay"] for group in optimizer.param_groups} == decays
    assert {group["lr"] for group in optimizer.param_groups} == {setting.lr}
    betas = study.make_optimizer(foreign_model(), Trial(0, beta2=0.95)).param_groups[0]["betas"]
    assert betas == (0.9, 0.95)


def test_a_run_on_a_foreign_model(tmp_path, monkeypatch):
    monkeypatch.setattr("ftcourse.studies.tasks.epochs", lambda n: 2)
    setting = Trial(0, str(save_foreign(tmp_path / "qwen")), "chat-24", schedule="cosine")
    record = run(setting)
    assert json.loads(json.dumps(record)) == record and trial_of(record, Trial) == setting
    assert len(record["train_loss"]) == 4 and 0 <= record["test_exact"] <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "0"], "at least 1"),
        (["--workers", "0"], "at least 1"),
        (["--model", "./nowhere"], "no model folder"),
    ],
)
def test_what_cannot_work_is_refused_before_any_run(arguments, said, tmp_path, capsys):
    output = tmp_path / "study.jsonl"
    with pytest.raises(SystemExit):
        study.main([*arguments, "--output", str(output)])
    assert said in capsys.readouterr().err and not output.exists()


def test_every_run_of_the_plan_is_stored_once():
    stored = Counter(trial_of(record, Trial) for record in RUNS)
    assert stored == Counter(plan()), "python -m ftcourse.studies.optimizer stores them"


def test_a_stored_run_drawn_at_random_repeats(monkeypatch):
    """Processors round otherwise, and training magnifies that: the first steps agree closely, the end roughly."""
    stored = random.choice([record for record in RUNS if record["task"] == "chat-96"])  # the quick ones
    setting = trial_of(stored, Trial)
    again = run(setting)
    monkeypatch.setattr(study, "training_steps", lambda *given: islice(training_steps(*given), 3))
    other = run(replace(setting, seed=setting.seed + 1))
    first, repeated, others = (sum(record["train_loss"][:3]) for record in (stored, again, other))
    assert repeated == pytest.approx(first, rel=1e-3), stored
    assert others != pytest.approx(first, rel=1e-3)
    assert again["test_loss"] == pytest.approx(stored["test_loss"], rel=0.1), stored
