"""The recipe study: its methods, its optimizers, what a run records, its command. test_stored_studies has the rest."""

import json
import math

import pytest
import torch

from ftcourse.studies import recipe as study
from ftcourse.studies.bracketing import SEEDS, TUNING_SEEDS, BracketedStudy, check_study, method_of
from ftcourse.studies.recipe import EPOCHS, EVERYTHING, QUESTIONS, Trial, run, starts, usual, variants
from ftcourse.studies.records import read_records, trial_of
from ftcourse.studies.tasks import BATCH_SIZE, MAX_GRAD_NORM, WARMUP, WEIGHT_DECAY, load_task, training_steps
from ftkit.batching import steps_per_epoch
from tests.tiny import foreign_model, save_foreign

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("task", EPOCHS)
def test_every_variant_changes_one_thing_and_every_question_has_the_usual_run(task):
    for question in QUESTIONS:
        methods, grids = variants(task, question), starts(task, question)
        assert set(methods.values()) == set(grids) and usual(task) in grids
        for label, method in methods.items():
            changed = {name for name, value in vars(method).items() if value != vars(usual(task))[name]}
            assert len(changed) <= (2 if label == "0.1, all" else 1)
    assert {method.model for method in starts(task, "warmup", "other")} == {"other"}
    assert (usual(task).batch_size, usual(task).max_grad_norm) == (BATCH_SIZE, MAX_GRAD_NORM)
    assert (usual(task).warmup, usual(task).weight_decay) == (WARMUP, WEIGHT_DECAY)


def test_both_tasks_take_about_as_many_steps():
    steps = [epochs * steps_per_epoch(load_task(task, 0).train, BATCH_SIZE) for task, epochs in EPOCHS.items()]
    assert steps == [60, 64]


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


def test_batch_size_and_clipping_reach_the_training_loop():
    """SGD without momentum moves by lr times the clipped gradient, whose norm is then exactly the limit."""
    moved = {}
    for limit in (0.3, math.inf):
        task = load_task("chat-24", 0)
        optimizer = torch.optim.SGD(task.model.parameters(), lr=1.0)
        before = torch.nn.utils.parameters_to_vector(task.model.parameters()).clone()
        steps = training_steps(task, optimizer, 0, "constant", 0.0, batch_size=8, max_grad_norm=limit)
        next(steps)
        moved[limit] = (torch.nn.utils.parameters_to_vector(task.model.parameters()) - before).norm().item()
    assert moved[0.3] == pytest.approx(0.3, rel=1e-3) and moved[math.inf] > 1
    task = load_task("chat-24", 0)
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.0)
    assert len(list(training_steps(task, optimizer, 0, batch_size=8))) == 3 * task.epochs


def test_a_run_on_a_foreign_model(tmp_path):
    setting = Trial(0, str(save_foreign(tmp_path / "qwen")), "chat-24", schedule="cosine", epochs=2, batch_size=8)
    record = run(setting)
    assert json.loads(json.dumps(record)) == record and trial_of(record, Trial) == setting
    assert len(record["epoch_losses"]) == 2 and len(record["first_losses"]) == 3
    assert sum(record["first_losses"]) == pytest.approx(3 * record["epoch_losses"][0], rel=1e-3)
    assert 0 <= record["test_exact"] <= 1 and "validation_exact" not in record


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "0"], "at least 1"),
        (["--workers", "0"], "at least 1"),
        (["--model", "./nowhere"], "no model folder"),
        (["--tasks", "songs-9"], "invalid choice"),
    ],
)
def test_what_cannot_work_is_refused_before_any_run(arguments, said, tmp_path, capsys):
    output = tmp_path / "study.jsonl"
    with pytest.raises(SystemExit):
        study.main([*arguments, "--output", str(output)])
    assert said in capsys.readouterr().err and not output.exists()


def test_the_command_runs_every_task(tmp_path, monkeypatch):
    def made_up(trial):
        distance = abs(math.log(trial.lr / 2e-3))
        split = "validation" if trial.seed in TUNING_SEEDS else "test"
        return {**vars(trial), f"{split}_exact": 1 - distance / 20, f"{split}_loss": distance}

    monkeypatch.setattr(study, "run", made_up)
    output = tmp_path / "study.jsonl"
    assert study.main(["--output", str(output), "--workers", "1", "--seeds", "5"]) == 0
    check_study(read_records(output), Trial)


def test_every_method_of_the_plan_is_stored_with_its_seeds():
    stored = BracketedStudy.read(study.BRACKETED, Trial)
    wanted = {(task, question): starts(task, question) for task in EPOCHS for question in QUESTIONS}
    assert {method_of(method) for grids in wanted.values() for method in grids} == set(stored.methods)
    for key, grids in wanted.items():
        for method in grids:
            assert len(stored.ends(method)) >= study.MORE_SEEDS.get(key, len(SEEDS)), (key, method)
