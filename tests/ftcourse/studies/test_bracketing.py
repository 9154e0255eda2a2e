"""Bracketing on made-up runs whose best learning rate is known."""

import math
import sys
from dataclasses import asdict, dataclass, replace

import pytest

from ftcourse.intervals import interval
from ftcourse.studies import bracketing
from ftcourse.studies.bracketing import (
    SEEDS,
    TUNING_SEEDS,
    BracketedStudy,
    UnbracketedError,
    best_learning_rate,
    check_study,
    extend,
    method_of,
    run_bracketed,
    scores,
)
from ftcourse.studies.records import read_records, write_records
from ftcourse.studies.tasks import load_task


@dataclass(frozen=True)
class Trial:
    seed: int
    method: str = "plain"
    lr: float = 1e-3


BEST = {"plain": 1e-3, "fast": 2.7e-2, "slow": 1.2e-5}
PLAIN, FAST, SLOW = (Trial(0, name) for name in BEST)
GRID = (3.33e-4, 1e-3, 3e-3)


def run(trial: Trial) -> dict:
    """Scores fall with the distance to the method's best rate; the loss of a rate far above it is not a number."""
    distance = abs(math.log(trial.lr / BEST[trial.method]))
    split = "validation" if trial.seed in TUNING_SEEDS else "test"
    loss = math.nan if trial.lr > 50 * BEST[trial.method] else distance
    return {**asdict(trial), f"{split}_exact": 0.9 - distance / 10 + trial.seed / 1e4, f"{split}_loss": loss}


@pytest.fixture
def study(tmp_path) -> BracketedStudy:
    starts = {PLAIN: GRID, FAST: GRID, SLOW: GRID}
    return BracketedStudy(run_bracketed(starts, run, tmp_path / "runs.jsonl", "made up"), Trial)


def test_a_grid_is_extended_until_its_best_rate_lies_inside(study):
    assert study.best(PLAIN) == 1e-3 and list(study.curve(PLAIN)) == list(GRID)
    assert study.best(FAST) == 2.7e-2 and max(study.curve(FAST)) == pytest.approx(8.1e-2)
    assert study.best(SLOW) == pytest.approx(1.2e-5, rel=0.05) and min(study.curve(SLOW)) < 5e-6
    check_study(study.records, Trial)


def test_final_runs_are_tested_and_paired_by_seed(study):
    assert study.ends(PLAIN) == pytest.approx([0.9 + seed / 1e4 for seed in SEEDS])
    gaps = [a - b for a, b in zip(study.ends(PLAIN), study.ends(FAST), strict=True)]
    assert study.gain(PLAIN, FAST) == interval(gaps)
    assert len(study.curve(PLAIN)[1e-3]) == len(TUNING_SEEDS)
    with pytest.raises(KeyError):
        study.runs(Trial(0, "plain", 1e-3)) and study.gain(PLAIN, FAST, "validation_exact")


def test_what_is_stored_is_not_run_again(tmp_path):
    path, done = tmp_path / "runs.jsonl", []

    def counted(trial):
        done.append(trial)
        return run(trial)

    whole = run_bracketed({FAST: GRID}, counted, path, "first")
    assert len(done) == len(set(done)) == len(whole)
    path.write_text(path.read_text()[:-9])  # killed in the last line
    assert run_bracketed({FAST: GRID}, counted, path, "second") == whole == read_records(path)
    assert len(done) == len(whole) + 1


def test_a_method_that_only_gets_better_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setitem(BEST, "fast", 1e9)
    with pytest.raises(UnbracketedError, match=r"method='fast' is best at 2\.19, the upper edge"):
        run_bracketed({FAST: GRID, PLAIN: GRID}, run, tmp_path / "runs.jsonl", "made up")


@pytest.mark.parametrize("grid", [(1e-3,), (1e-3, 4e-3)])
def test_coarse_grids_are_refused(grid, tmp_path):
    with pytest.raises(ValueError, match="at most a factor of 3 apart"):
        run_bracketed({PLAIN: grid}, run, tmp_path / "runs.jsonl", "made up")
    with pytest.raises(ValueError, match="both tuned and tested"):
        run_bracketed({PLAIN: GRID}, run, tmp_path / "runs.jsonl", "made up", seeds=(100, 0))


@pytest.mark.parametrize(("missing", "edge"), [(3e-3, "upper"), (3.33e-4, "lower")])
def test_a_best_rate_at_an_edge_is_refused(study, missing, edge):
    records = [r for r in study.records if (r["method"], r["lr"]) != ("plain", missing)]
    with pytest.raises(UnbracketedError, match=rf"is best at 0\.001, the {edge} edge"):
        best_learning_rate(records, PLAIN)
    with pytest.raises(UnbracketedError):
        check_study(records, Trial)


def test_a_hole_in_the_grid_is_refused():
    records = [run(Trial(seed, lr=lr)) for lr in (1e-4, 1e-3, 1e-2) for seed in TUNING_SEEDS]
    with pytest.raises(UnbracketedError, match=r"0\.0001 and 0\.001 lie further apart than a factor of 3"):
        best_learning_rate(records, PLAIN)


def test_equal_scores_are_decided_by_loss_and_a_diverged_run_is_worst():
    def records(losses, exact=0.5):
        return [
            {**asdict(Trial(seed, lr=lr)), "validation_exact": exact, "validation_loss": loss}
            for lr, loss in zip((1e-3, 2e-3, 4e-3, 8e-3), losses, strict=True)
            for seed in TUNING_SEEDS
        ]

    assert best_learning_rate(records([2, 1.5, 1, 3]), PLAIN) == 4e-3
    assert best_learning_rate(records([2, 1.5, math.nan, 3]), PLAIN) == 2e-3
    assert best_learning_rate(records([2, 1.5, 1, math.inf], math.nan), PLAIN) == 4e-3
    with pytest.raises(ValueError, match=r"at 0\.008 lacks the tuning seeds \[101\]"):
        best_learning_rate(records([2, 1.5, 1, 3])[:-1], PLAIN)
    with pytest.raises(ValueError, match="no tuning runs of method='fast'"):
        best_learning_rate(records([2, 1.5, 1, 3]), FAST)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda rs: [r for r in rs if r["seed"] != 4], "has 4 final seeds of 5"),
        (lambda rs: rs + [run(replace(PLAIN, lr=3e-3, seed=7))], r"best at 0\.001, but has final runs at \[0\.003\]"),
        (lambda rs: [{**r, "test_exact": 1.0} for r in rs], "validation measures alone"),
        (lambda rs: [{**r, "validation_exact": 1.0, "validation_loss": 1.0} for r in rs], "validation measures alone"),
        (lambda rs: [r for r in rs if r["method"] != "plain" or r["seed"] > 50], "only tuning runs, or only final"),
        (lambda rs: [], "no runs"),
    ],
)
def test_a_study_that_breaks_the_rules_is_refused(fault, said, study):
    with pytest.raises(ValueError, match=said):
        check_study(fault(study.records), Trial)


def test_extension_keeps_the_grid_s_step():
    assert extend([1e-3, 2e-3], 2e-3) == [1e-3, 2e-3, 4e-3]
    assert extend([1e-3, 3e-3], 1e-3) == [3.33e-4, 1e-3, 3e-3]
    assert method_of(Trial(5, "fast", 1.0)) == method_of(FAST) != method_of(PLAIN)


def test_processes_share_the_work(tmp_path, monkeypatch):
    import os

    monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(sys.executable))  # which starts warm
    monkeypatch.setattr("multiprocessing.util._args_from_interpreter_flags", list)  # but not given flags
    alone = run_bracketed({PLAIN: GRID}, run, tmp_path / "one.jsonl", "one")
    assert run_bracketed({PLAIN: GRID}, run, tmp_path / "two.jsonl", "two", workers=2) == alone


@pytest.mark.parametrize("name", ["chat-24", "truth-24"])
def test_tuning_seeds_are_scored_on_validation_and_others_on_test(name):
    task = load_task(name, TUNING_SEEDS[0], validation=True)
    assert set(scores(task, TUNING_SEEDS[0])) == {"validation_exact", "validation_loss"}
    tested = scores(task, 0)
    assert {"test_exact", "test_loss"} <= set(tested) and not any("validation" in name for name in tested)


def test_write_records_keeps_infinite_losses(tmp_path):
    write_records(tmp_path / "runs.jsonl", [{"lr": 1.0, "validation_loss": math.inf}])
    assert read_records(tmp_path / "runs.jsonl")[0]["validation_loss"] == math.inf
    assert bracketing.STEP == 3.0
