"""The pictures and tables of the recipe study, on made-up runs whose best learning rates and gains are known."""

import math
import statistics
from dataclasses import asdict, replace

import pytest

from ftcourse.explorers import recipe
from ftcourse.explorers.recipe import (
    effects,
    plot_defaults,
    plot_learning_rates,
    plot_question,
    plot_real_learning_rates,
    plot_worth,
    real_learning_rates,
    tasks_of,
    worth,
)
from ftcourse.studies import real_model
from ftcourse.studies.bracketing import SEEDS, TUNING_SEEDS, BracketedStudy
from ftcourse.studies.recipe import EPOCHS, QUESTIONS, Trial, usual, variants
from tests.ftcourse.studies.test_real_model_study import read, record


def made_up(questions=("schedule", "optimizer", "epochs")) -> BracketedStudy:
    """AdamW is best at 1e-3, SGD at 0.1; a constant schedule gains 5 points and loses 0.1 nats."""
    records = []
    trials = {trial for task in EPOCHS for question in questions for trial in variants(task, question).values()}
    for trial in sorted(trials | {usual(task) for task in EPOCHS}, key=repr):
        best = 0.1 if trial.optimizer == "sgd" else 1e-3
        constant = trial.schedule == "constant_with_warmup"
        for seed in (*TUNING_SEEDS, *SEEDS):
            split = "validation" if seed in TUNING_SEEDS else "test"
            for lr in (best / 3, best, 3 * best) if seed in TUNING_SEEDS else (best,):
                far = abs(math.log(lr / best)) / 10
                exact = 0.5 - far + seed / 1e4 + 0.05 * constant + (0.002 * (-1) ** seed if constant else 0)
                losses = {f"{split}_exact": exact, f"{split}_loss": 0.6 + far + 0.1 * constant}
                records.append({**asdict(replace(trial, lr=lr, seed=seed)), **losses})
    return BracketedStudy(records, Trial)


def test_the_best_learning_rate_is_marked_and_its_bracket_shaded():
    curve = {3e-4: [0.1, 0.2], 1e-3: [0.5, 0.6], 3e-3: [0.2, 0.3]}
    ax = plot_learning_rates(curve, best=1e-3)
    assert ax.get_xscale() == "log"
    diamonds = [line for line in ax.lines if line.get_marker() == "D"]
    assert [tuple(line.get_xydata()[0]) for line in diamonds] == [(1e-3, pytest.approx(0.55))]
    (bracket,) = ax.patches
    assert bracket.get_extents().width > 0 and bracket.get_x() == 3e-4
    assert not plot_learning_rates(curve, best=1e-3, bracket=False).patches
    with pytest.raises(ValueError):
        plot_learning_rates(curve, best=5e-3)


def test_a_question_has_a_row_per_task_and_a_panel_per_setting():
    grid = plot_question(made_up(), "schedule")
    assert grid.shape == (len(EPOCHS), 3 + 2)
    assert grid[0][-1].get_xlim() == grid[1][-1].get_xlim() != grid[0][-2].get_xlim()
    assert [ax.get_title() for ax in grid[0]] == ["constant", "linear", "cosine", "test exact match ↑", "test loss ↓"]
    exact, loss = grid[0][-2:]
    assert [label.get_text() for label in exact.get_yticklabels()] == ["constant", "linear", "cosine"]
    means = {line.get_ydata()[0]: line.get_xdata()[0] for line in exact.lines if line.get_marker() in "oD"}
    assert means[0] == pytest.approx(5, abs=0.2) and means[1] == 0
    assert loss.lines[1].get_xdata()[0] == pytest.approx(0.1)


def test_tasks_may_have_different_settings():
    grid = plot_question(made_up(), "epochs")
    assert [ax.get_visible() for ax in grid[1]] == [True, True, True, False, True, True]
    assert [ax.get_title() for ax in grid[1][:3]] == ["epochs 1", "epochs 2", "epochs 4"]


def test_sgd_has_its_own_range_of_learning_rates():
    adamw, sgd = plot_question(made_up(), "optimizer")[0][:2]
    assert adamw.get_xlim()[1] < 0.01 < sgd.get_xlim()[0]


def test_the_table_has_the_numbers_of_the_figure():
    lines = effects(made_up(), "schedule").splitlines()
    assert len(lines) == 2 + 3 + 2
    constant, linear = lines[2], lines[3]
    assert constant.split()[:6] == ["chat-96", "constant", "0.001", "5", "55%", "0.70"]
    assert "+5.0 (+4." in constant and "+0.10 (+0.10 to +0.10)" in constant
    assert linear.split() == ["chat-96", "linear", "0.001", "5", "50%", "0.60"]
    assert lines[1].index("nats") == constant.index("+0.10 (") and lines[1].index("percentage") == constant.index(
        "+5.0"
    )


def test_a_task_without_runs_of_a_question_is_left_out():
    study = made_up()
    assert tasks_of(study, "schedule") == list(EPOCHS)
    few = BracketedStudy([r for r in study.records if r["task"] == "chat-96" or r["schedule"] == "linear"], Trial)
    assert tasks_of(few, "schedule") == ["chat-96"] and tasks_of(few, "epochs") == list(EPOCHS)
    assert len(plot_question(few, "schedule")) == 1 and "chat-500" not in effects(few, "schedule")
    with pytest.raises(ValueError, match="no task has all runs of 'warmup'"):
        tasks_of(study, "warmup")


def test_what_a_setting_can_cost_is_worst_less_best():
    study = made_up(tuple(QUESTIONS))
    found = worth(study, "chat-96")
    assert list(found)[:2] == ["learning rate, 3× off", "schedule"] and set(found) - {"learning rate, 3× off"} == {
        question for question in QUESTIONS if question != "learning rate"
    }
    assert found["learning rate, 3× off"] == pytest.approx(math.log(3) / 10)
    assert found["schedule"] == pytest.approx(0.1) and found["warmup"] == 0
    other = worth(study, "chat-500")
    assert "weight decay" not in other
    axes = plot_worth({"chat-96": found, "chat-500": other})
    assert [len(ax.patches) for ax in axes] == [len(found), len(other)]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == list(found)
    assert axes[0].get_xlim() == axes[1].get_xlim()


def test_means_are_over_the_seeds_that_all_have():
    study, trials = made_up(), variants("chat-96", "schedule")
    more = {**study.runs(trials["linear"])[0], "seed": 9, "test_exact": 0.0}
    longer = BracketedStudy([*study.records, more], Trial)
    assert statistics.fmean(longer.ends(trials["linear"])) < 0.45
    assert recipe.common_means(longer, trials, "test_exact") == recipe.common_means(study, trials, "test_exact")
    assert effects(longer, "schedule") == effects(study, "schedule")


def test_defaults_are_marked_by_name_and_tasks_by_shape():
    axes = plot_defaults(made_up())
    assert {text.get_text() for text in axes[0].texts} == set(recipe.DEFAULTS)
    shapes = {line.get_label(): line.get_marker() for line in axes[0].lines if line.get_label()[0] != "_"}
    assert set(shapes) == set(EPOCHS) and len(set(shapes.values())) == 2


@pytest.fixture
def real_study(tmp_path) -> real_model.RealStudy:
    tuned = ((real_model.ADAMW, 3e-4), (real_model.LORA, 3e-3))
    records = [
        record(method, lr, real_model.TUNING_SEED, [1.0], [exact])
        for method, best in tuned
        for lr, exact in ((best / 3, 0.1), (best, 0.5), (best * 3, 0.2))
    ]
    for seed in real_model.SEEDS:
        finals = ((3e-4, 0.4), (5e-5, 0.3 + seed / 100), (2e-5, 0.1))
        records += [record(real_model.ADAMW, lr, seed, [1.0], [exact]) for lr, exact in finals]
    return read(tmp_path, records)


def test_the_best_learning_rates_of_the_real_model_are_printed(real_study):
    adamw, lora, *_ = real_learning_rates(real_study).split("\n")
    assert adamw.startswith("AdamW: 0.0001 ") and adamw.endswith("; best 0.0003") and lora.endswith("; best 0.003")
    # two defaults, two curves, two rings
    assert [len(ax.lines) for ax in plot_real_learning_rates(real_study)] == [6, 6]


def test_both_defaults_are_compared_with_the_best_learning_rate_over_seeds(real_study):
    best, trl, transformers = real_learning_rates(real_study).split("\n")[2:]
    assert best == "test, 3 seeds, best 0.0003: 40%"
    assert trl == "  TRL 2e-5: 10%; the best is ahead by +30.0 (+30.0 to +30.0) percentage points"
    assert transformers.startswith("  transformers 5e-5: 31%; the best is ahead by +9.0 (+6.5 to +11.5)")
