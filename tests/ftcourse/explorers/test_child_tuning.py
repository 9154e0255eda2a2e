"""Pictures of 02: what they draw is what they were given, on made-up records whose answer is known."""

import json

import pytest
import torch

from ftcourse.explorers.child_tuning import (
    BY_P,
    learning_rate_explorer,
    plot_losses,
    plot_masks,
    plot_real_study,
    plot_study,
    plot_study_curves,
    plot_updates,
    real_differences,
)
from ftcourse.plots import figure_svg
from ftcourse.studies import real_model
from ftcourse.studies.bracketing import TUNING_SEEDS
from ftcourse.studies.masks import CONTROL, CONTROLS, METHODS, PREDICTIONS, F, Tournament
from tests.ftcourse.studies.test_real_model_study import RECORDS, read

RATES = (4e-4, 1e-3, 3e-3, 9e-3)
TASKS = ("chat-96", "truth-500")
NOISE = (0.00, 0.02, -0.01, 0.015, -0.02)


def made_up(folder, tasks=TASKS, **better) -> Tournament:
    """Every method ends at 0.5 plus noise of its own plus `better[method]`; F's best rate is three times AdamW's."""
    records, controls = [], []
    for task in tasks:
        for place, method in enumerate((*METHODS[task], CONTROL)):
            best = 3e-3 if method in BY_P.values() else 1e-3
            for seed in (*TUNING_SEEDS, *range(len(NOISE))):
                split = "validation" if seed in TUNING_SEEDS else "test"
                for lr in RATES if split == "validation" else [best]:
                    end = 0.5 + NOISE[(seed + 2 * place) % 5] + better.get(method, 0) - (lr != best) * 0.2
                    curves = {"train_loss": [3.0, 0.1], f"{split}_exact": [0.1, end], f"{split}_loss": [2.0, 1 - end]}
                    if task.startswith("chat"):
                        curves["heldout_domains_exact"] = [0.0, end / 4]
                    ends = {name: values[-1] for name, values in curves.items()}
                    record = {"task": task, "method": method, "lr": lr, "seed": seed, **ends, "curves": curves}
                    if method != CONTROL:
                        records.append({**record, "trained": 1000, "kept": 0.5})
                    elif split == "test":
                        controls.append({**record, "lr": 0.00164, "trained": 1000, "kept": 0.5})
    for name, rows in (("masks.jsonl", records), (CONTROLS, controls)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Tournament(folder / "masks.jsonl")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return made_up(tmp_path_factory.mktemp("study"), **{F: 0.2})


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_the_studys_figure_has_four_rows_a_task_with_the_paired_difference_from_adamw(study):
    figure = plot_study(study)
    assert [ax.get_title() for ax in figure.axes] == [f"{task}, 5 seeds" for task in TASKS]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == "AdamW" and "control" in labels[1] and labels[2:] == ["F, p = 0.3", "D, p = 0.1"]
    for ax, task in zip(figure.axes, TASKS, strict=True):
        assert texts(ax)[2] == study.effect(task, F).points and texts(ax)[2].startswith("+20")
        means = [line.get_xdata()[0] for line in ax.lines]
        assert means[2] - means[0] == pytest.approx(20, abs=0.1)


def test_the_studys_curves_are_means_over_seeds_by_epoch(study):
    for ax, task in zip(plot_study_curves(study).axes, TASKS, strict=True):
        assert [line.get_marker() for line in ax.lines] == ["o", "D", "s"]
        curves = study.curves(task, F, "test_loss")
        assert list(ax.lines[1].get_ydata()) == pytest.approx([sum(epoch) / 5 for epoch in zip(*curves, strict=True)])


def test_a_study_of_one_task_has_one_panel(tmp_path):
    one = made_up(tmp_path, TASKS[:1])
    for plot in (plot_study, plot_study_curves):
        assert [ax.get_title() for ax in plot(one).axes] == ["chat-96, 5 seeds"]


def test_another_study_makes_another_figure(study, tmp_path):
    worse = made_up(tmp_path, **{F: -0.2})
    assert figure_svg(plot_study(study)) != figure_svg(plot_study(worse))


def test_learning_rates_are_those_that_were_chosen_and_adamws_curve_is_moved_by_the_root(study):
    explorer = learning_rate_explorer(study)
    assert "0.001 for AdamW and 0.003 for F at 0.3, 3.0 times as high; 1/√p is 1.8" in explorer.caption
    before = explorer.picture.value
    explorer.slider.value = 0.5
    assert "1/√p is 1.4" in explorer.caption and explorer.picture.value != before
    explorer.task.value = "truth-500"
    assert "for F at 0.3" in explorer.caption and explorer.caption.endswith("no other p on truth-500.")
    assert repr(explorer).startswith("LearningRateExplorer(reserve_p=0.5, truth-500)")
    assert "image/svg+xml" in explorer._repr_mimebundle_()


def test_a_study_without_final_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"studies\.masks makes them"):
        learning_rate_explorer(Tournament(tmp_path / "masks.jsonl"))


def test_the_rows_and_values_of_reserve_p_are_methods_of_the_study():
    assert {*BY_P.values(), CONTROL} <= set(PREDICTIONS)
    assert all(method.split()[-1] == str(p) for p, method in BY_P.items())


def test_masks_updates_and_losses_are_drawn_under_their_names():
    masks = {"F, step 1": torch.eye(3).bool(), "D, step 1": torch.ones(3, 3).bool()}
    axes = plot_masks(masks)
    assert [ax.get_title() for ax in axes] == list(masks)
    hatched = [sum(bool(patch.get_hatch()) for patch in ax.patches) for ax in axes]
    assert hatched == [6, 0]
    ax = plot_updates({"AdamW": (1, 1), "F": (torch.tensor(0.5449), 0.999)})
    assert texts(ax) == ["AdamW\n(1.00, 1.00)", "F\n(0.54, 1.00)"]
    ax = plot_losses({"AdamW": [2.0, 1.0], "F": [3.0, 1.5]})
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["AdamW", "F"]
    assert list(ax.lines[1].get_ydata()) == [3.0, 1.5]


def test_a_published_models_runs_are_drawn_and_their_differences_printed(tmp_path):
    study, methods = read(tmp_path, RECORDS), (real_model.ADAMW, real_model.FREE, real_model.CONTROL)
    loss, exact = plot_real_study(study, methods)
    drawn = {line.get_label(): line.get_ydata().tolist() for line in exact.lines}
    assert drawn[real_model.CONTROL] == pytest.approx([0.1, 0.6]) and "loss" in loss.get_ylabel()
    head, first, free, control, said = real_differences(study, methods).split("\n")
    assert first.split() == ["AdamW", "0.0001", "60%"] and "3 seeds" in said and "quarter" in head
    assert free.split()[:3] == ["F", "0.0002", "+0.60"] and free.endswith("+10.0 (+10.0 to +10.0) points")
    assert "+0.0 (-24.8 to +24.8) points" in control
