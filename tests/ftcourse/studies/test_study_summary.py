"""Intervals, paired differences and verdicts of the child-tuning study, on made-up records whose answer is known."""

import statistics

import ipywidgets
import pytest

from ftcourse.explorers.child_tuning import plot_curves, plot_scores, sweep_explorer
from ftcourse.intervals import interval
from ftcourse.studies.child_tuning import (
    ADAMW,
    ADVISED_P,
    CONTROL,
    DEPENDENT,
    DEPENDENT_P,
    FREE,
    FREE_P,
    METHODS,
    RATES,
    SEEDS,
    TUNING_SEEDS,
    Study,
    less_spread,
    study_claims,
)
from ftcourse.studies.records import write_records

NOISE = (0.00, 0.02, -0.01, 0.015, -0.02)
LAGS, P_MATTERS, BETTER, D_BETTER, STEADY, F_OVER_D, OVER_CONTROL = range(7)  # the order of study_claims


def made_up(tmp_path, tasks=("chat-8", "truth-8"), **ends) -> Study:
    """A study in which every method ends at 0.5 plus noise of its own, or at what `ends` says: (task, method, p)."""
    records = []
    combinations = [*METHODS, *((CONTROL, p) for p in FREE_P)]
    for task in tasks:
        for place, (method, p) in enumerate(combinations):
            seeds = range(len(NOISE)) if method == CONTROL else [*TUNING_SEEDS, *range(len(NOISE))]
            for seed in seeds:
                noise = NOISE[(seed + 2 * place) % len(NOISE)] * ends.get("spread", {}).get(method, 1)
                end = ends.get("scores", {}).get((task, method, p), 0.5) + noise
                first = ends.get("first_loss", {}).get((task, method, p), 2.0) + noise
                curves = {"test_exact": [0.1, end], "test_loss": [first, 1.0], "train_loss": [3.0, 0.1]}
                if task.startswith("chat"):
                    curves["heldout_domains_exact"] = [0.0, end + ends.get("in_domains", {}).get(method, 0)]
                rates = RATES if seed in TUNING_SEEDS else RATES[:1]
                records += [
                    {"task": task, "method": method, "p": p, "lr": lr, "seed": seed, "curves": curves} for lr in rates
                ]
    write_records(tmp_path / "study.jsonl", records)
    return Study(tmp_path / "study.jsonl")


def verdicts(study: Study) -> list[str]:
    return [claim.verdict for claim in study_claims(study)]


def test_differences_are_paired_by_seed(tmp_path):
    study = made_up(tmp_path, scores={("chat-8", FREE, 0.3): 0.6})
    ends = [study.ends("chat-8", *which) for which in ((FREE, 0.3), (ADAMW, 1.0))]
    by_hand = [a - b for a, b in zip(*ends, strict=True)]
    found = study.gain("chat-8", (FREE, 0.3), (ADAMW, 1.0))
    assert found == interval(by_hand) and found.mean == pytest.approx(0.1)
    assert study.ends("chat-8", FREE, 0.3, "test_loss", epoch=0)[0] > 1.9


def test_nothing_is_found_where_there_is_nothing(tmp_path):
    found = verdicts(made_up(tmp_path))
    assert found == ["not reproduced", "holds", *["not reproduced"] * 5]  # no other p is better than 0.3


@pytest.mark.parametrize(
    ("which", "ends"),
    [
        (BETTER, {"scores": {(task, FREE, 0.3): 0.7 for task in ("chat-8", "truth-8")}}),
        (D_BETTER, {"scores": {(t, DEPENDENT, p): 0.7 for t in ("chat-8", "truth-8") for p in DEPENDENT_P}}),
        (F_OVER_D, {"scores": {(t, DEPENDENT, p): 0.2 for t in ("chat-8", "truth-8") for p in DEPENDENT_P}}),
        (OVER_CONTROL, {"scores": {(task, CONTROL, 0.3): 0.2 for task in ("chat-8", "truth-8")}}),
        (STEADY, {"spread": {FREE: 0.01}}),
        (
            LAGS,
            {
                "scores": {(task, FREE, 0.3): 0.7 for task in ("chat-8", "truth-8")},
                "first_loss": {(task, FREE, 0.3): 3.0 for task in ("chat-8", "truth-8")},
            },
        ),
    ],
)
def test_each_claim_holds_where_it_should(which, ends, tmp_path):
    assert verdicts(made_up(tmp_path, **ends))[which] == "holds"


def test_a_claim_may_hold_on_one_task(tmp_path):
    study = made_up(tmp_path, scores={("chat-8", FREE, 0.3): 0.7})
    claim = study_claims(study)[BETTER]
    assert claim.verdict == "holds under conditions"
    assert claim.only_if == "on chat-8, chat-8 in held-out domains"
    assert "chat-8 +20.0 (" in claim.measured


def test_held_out_domains_are_judged_apart_from_questions(tmp_path):
    claims = study_claims(made_up(tmp_path, in_domains={DEPENDENT: 0.2}))
    assert claims[BETTER].verdict == "not reproduced"
    assert claims[D_BETTER].only_if == "on chat-8 in held-out domains"
    assert "chat-8 in held-out domains +20.0 (" in claims[D_BETTER].measured
    assert "truth-8 in held-out domains" not in claims[D_BETTER].measured


def test_another_p_that_is_better_tells_against_the_advice(tmp_path):
    better = {(task, FREE, 0.75): 0.7 for task in ("chat-8", "truth-8")}
    claim = study_claims(made_up(tmp_path, scores=better))[P_MATTERS]
    assert claim.verdict == "not reproduced" and "p = 0.75: +20.0" in claim.measured


def test_tuning_runs_are_found_by_their_rate(tmp_path):
    study = made_up(tmp_path)
    curves = study.tuning_curves("chat-8", FREE, 0.3, RATES[1], "test_loss")
    assert len(curves) == len(TUNING_SEEDS) and all(curve[-1] == 1.0 for curve in curves)
    assert study.tuning_curves("chat-8", FREE, 0.3, 0.7, "test_loss") == []


def test_the_better_d_is_chosen_by_tuning_runs(tmp_path):
    study = made_up(tmp_path, scores={("chat-8", DEPENDENT, 0.3): 0.8})
    assert study.best_dependent("chat-8") == (DEPENDENT, 0.3)


def test_less_spread_needs_more_than_a_little():
    steady, wild = [0.5 + n / 10 for n in NOISE], [0.5 + n for n in (0.1, -0.2, 0.15, -0.1, 0.05)]
    assert less_spread(steady, wild) and not less_spread(wild, steady)
    assert not less_spread(list(NOISE), list(NOISE[1:] + NOISE[:1]))
    assert not less_spread(steady, steady)


def test_figures_show_every_method(tmp_path):
    study = made_up(tmp_path)
    labels = [text.get_text() for text in plot_scores(study, "chat-8").get_yticklabels()]
    assert len(labels) == len(METHODS) + len(FREE_P) and "D, p = 0.1" in labels
    domains = plot_scores(study, "chat-8", "heldout_domains_exact")
    assert domains.get_xlabel() == "right in held-out domains (%)"
    ax = plot_curves(study, "chat-8", 0.5)
    means = {line.get_label(): line.get_ydata()[-1] for line in ax.lines if line.get_label()[0] != "_"}
    assert set(means) == {"AdamW", "F, p = 0.5", "AdamW at √0.5 × F's rate", "D, p = 0.1"}
    assert means["F, p = 0.5"] == pytest.approx(100 * statistics.fmean(study.ends("chat-8", FREE, 0.5)))


def test_the_explorer_follows_its_controls(tmp_path):
    explorer = sweep_explorer(made_up(tmp_path, scores={("truth-8", FREE, 0.75): 0.9}))
    before = explorer.picture.value
    explorer.slider.value, explorer.task.value = 0.75, "truth-8"
    assert "F at 0.75 90.1 %" in explorer.caption and explorer.picture.value != before
    explorer.measure.value = "train_loss"
    assert "training loss" in explorer.caption and 'role="img"' in explorer.picture.value
    assert isinstance(explorer, ipywidgets.VBox) and len(repr(explorer)) < 100


def test_a_study_without_runs_says_how_to_make_them(tmp_path):
    with pytest.raises(ValueError, match="no final runs yet"):
        sweep_explorer(Study(tmp_path / "nothing.jsonl"))


def test_the_stored_study_gives_a_verdict_on_every_claim():
    study = Study()
    assert study.tasks == ("chat-96", "chat-200", "chat-500", "truth-500")
    assert set(study.tasks) == set(SEEDS)
    assert len(study_claims(study)) == 7
    for task, seeds in SEEDS.items():
        scores = study.ends(task, ADAMW, 1.0)
        assert len(scores) == seeds
        assert (0.5 if task.startswith("truth") else 0.05) < statistics.fmean(scores) < 0.95  # it discriminates
    assert ADVISED_P in FREE_P
