"""Pictures of the mask tournament: every method with its interval, curves, and the menus."""

import statistics

import ipywidgets
import pytest

from ftcourse.explorers.masks import LABELS, LOOKS, plot_curves, plot_effects, tournament_explorer
from ftcourse.studies.masks import ADAMW, CONTROL, METHODS, PREDICTIONS, F, Tournament
from tests.ftcourse.studies.made_up import tournament


def test_every_method_has_a_label_and_a_look():
    assert set(LABELS) == set(LOOKS) == {ADAMW, *PREDICTIONS}
    assert len(set(LABELS.values())) == len(LABELS)


def test_effects_are_drawn_with_what_was_expected(tmp_path):
    study = tournament(tmp_path, scores={("chat-96", F): 0.6})
    ax = plot_effects(study, "chat-96", predicted=True)
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert len(labels) == len(METHODS["chat-96"]) and LABELS[CONTROL] in labels and LABELS[ADAMW] not in labels
    place = labels.index(LABELS[F])
    drawn = {line.get_ydata()[0]: line.get_xdata()[0] for line in ax.lines if len(line.get_ydata()) == 1}
    assert drawn[place] == pytest.approx(100 * study.effect("chat-96", F).mean)
    notes = [text.get_text() for text in ax.texts]
    assert len(notes) == len(labels) and notes[place] == "expected: no difference"
    assert len(plot_effects(study, "chat-96", [ADAMW, F, CONTROL]).get_yticklabels()) == 2
    other = plot_effects(study, "chat-96", [F], "test_loss")
    assert "nats" in other.get_xlabel() and other.get_title() == "chat-96: loss on new questions"


def test_curves_are_means_over_seeds(tmp_path):
    study = tournament(tmp_path)
    ax = plot_curves(study, "truth-500", (ADAMW, F, CONTROL))
    means = {line.get_label(): line.get_ydata()[-1] for line in ax.lines if line.get_label()[0] != "_"}
    assert set(means) == {LABELS[method] for method in (ADAMW, F, CONTROL)}
    assert means[LABELS[F]] == pytest.approx(100 * statistics.fmean(study.ends("truth-500", F)))


def test_the_explorer_follows_its_menus(tmp_path):
    explorer = tournament_explorer(tournament(tmp_path, scores={("truth-500", "LoRA"): 0.9}))
    before = explorer.picture.value
    explorer.method.value, explorer.task.value = "LoRA", "truth-500"
    assert f"{LABELS['LoRA']} 90" in explorer.caption and explorer.picture.value != before
    explorer.measure.value = "train_loss"
    assert "training loss" in explorer.caption and 'role="img"' in explorer.picture.value
    assert isinstance(explorer, ipywidgets.VBox) and len(repr(explorer)) < 100


def test_a_study_without_runs_says_how_to_make_them(tmp_path):
    with pytest.raises(ValueError, match="no final runs yet"):
        tournament_explorer(Tournament(tmp_path / "nothing.jsonl"))
