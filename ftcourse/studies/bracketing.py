"""Compare methods, each at its own learning rate: found on validation data, bracketed, then tested on other seeds.

A method is a study's frozen `Trial` dataclass in all fields but `lr` and `seed`. Each runs at a grid of learning rates
on the tuning seeds, and the rate with the best mean validation score is its best. A best rate at the edge of its grid
has not been found: the grid is extended until the best lies inside. Only then the final seeds run, at that rate, and
are scored on the test split.

A study's `run(trial)` returns the trial's fields and the measures of `scores`. Its module names the file of its records
as `BRACKETED`, and a test checks every such file by `check_study`.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from ftcourse.intervals import Interval, interval

from .records import Trial, read_records, run_missing, sort_records, trial_of, write_records
from .tasks import Task

TUNING_SEEDS = (100, 101)  # used for nothing else
SEEDS = (0, 1, 2, 3, 4)  # of the final runs
STEP = 3.0  # the largest factor between neighbouring learning rates; 1 % more is allowed, for rounded ones
MOST_EXTENSIONS = 6
SCORE, LOSS = "validation_exact", "validation_loss"


class UnbracketedError(ValueError):
    """The best learning rate of a method has no worse one within a factor of `STEP` on both sides."""


def scores(task: Task, seed: int, tuning_seeds: Sequence[int] = TUNING_SEEDS) -> dict[str, float]:
    """Evaluate a trained task: on its validation split for a tuning seed, else on what is tested.

    The task comes from `load_task(…, validation=True)`. Values have four decimals.
    """
    task.model.eval()
    with torch.no_grad():
        found = task.evaluate(task.model, *(["validation"] if seed in tuning_seeds else []))
    return {measure: round(value, 4) for measure, value in found.items()}


def method_of(trial: Trial) -> Trial:
    """The trial without its learning rate and seed: equal for the runs of one method."""
    return dataclasses.replace(trial, lr=0.0, seed=-1)


def learning_rate_curve(
    records: Iterable[dict], method: Trial, measure: str = SCORE, tuning_seeds: Sequence[int] = TUNING_SEEDS
) -> dict[float, list[float]]:
    """A measure of the method's tuning runs by learning rate, lowest first; one value per tuning seed.

    Raises:
        ValueError: a rate lacks a tuning seed, or the method has no tuning runs.
    """
    found: dict[float, dict[int, float]] = {}
    for record in records:
        trial = trial_of(record, type(method))
        if trial.seed in tuning_seeds and method_of(trial) == method_of(method):
            found.setdefault(trial.lr, {})[trial.seed] = record[measure]
    if not found:
        raise ValueError(f"no tuning runs of {describe(method)}")
    for lr, values in found.items():
        if missing := set(tuning_seeds) - set(values):
            raise ValueError(f"{describe(method)} at {lr:g} lacks the tuning seeds {sorted(missing)}")
    return {lr: [found[lr][seed] for seed in tuning_seeds] for lr in sorted(found)}


def best_learning_rate(
    records: Iterable[dict],
    method: Trial,
    tuning_seeds: Sequence[int] = TUNING_SEEDS,
    score: str = SCORE,
    loss: str = LOSS,
) -> float:
    """The rate with the best mean validation score of the tuning runs; of equals, that with the least loss.

    Args:
        records: of the study; those of other methods and seeds do not matter.
        method: a trial of the method; its `lr` and `seed` do not matter.
        score: the measure to choose by, more is better; `loss` decides between equals, less is better. A value that
            is not finite, from a run that diverged, is worse than all others.

    Raises:
        UnbracketedError: the best rate is the lowest or the highest, or a neighbour is further away than `STEP`.
        ValueError: a rate lacks a tuning seed, or the method has no tuning runs.
    """
    rates, best = _best(records, method, tuning_seeds, score, loss)
    place = rates.index(best)
    for edge, end in (("lower", 0), ("upper", len(rates) - 1)):
        if place == end:
            raise UnbracketedError(
                f"{describe(method)} is best at {best:g}, the {edge} edge of its learning rates "
                f"{', '.join(f'{lr:g}' for lr in rates)}: extend them"
            )
    for lower, upper in ((rates[place - 1], best), (best, rates[place + 1])):
        if upper / lower > 1.01 * STEP:
            raise UnbracketedError(
                f"{describe(method)} is best at {best:g}, but {lower:g} and {upper:g} lie further apart than a factor "
                f"of {STEP:g}: run rates between them"
            )
    return best


def _best(
    records: Iterable[dict], method: Trial, tuning_seeds: Sequence[int], score: str, loss: str
) -> tuple[list[float], float]:
    records = list(records)
    found = learning_rate_curve(records, method, score, tuning_seeds)
    losses = learning_rate_curve(records, method, loss, tuning_seeds)

    def merit(lr: float) -> tuple[float, float]:
        means = statistics.fmean(found[lr]), -statistics.fmean(losses[lr])
        return tuple(mean if math.isfinite(mean) else -math.inf for mean in means)

    return list(found), max(found, key=merit)


def describe(method: Trial) -> str:
    """The method in words for a message: the fields that differ from their defaults."""
    shown = [
        f"{field.name}={getattr(method, field.name)!r}"
        for field in dataclasses.fields(method)
        if field.name not in ("lr", "seed") and getattr(method, field.name) != field.default
    ]
    return ", ".join(shown) or "the method with default settings"


def run_bracketed(
    starts: Mapping[Trial, Sequence[float]],
    run: Callable[[Trial], dict],
    path: Path,
    label: str,
    *,
    seeds: Sequence[int] = SEEDS,
    tuning_seeds: Sequence[int] = TUNING_SEEDS,
    workers: int = 1,
) -> list[dict]:
    """Run what the file lacks: every method's tuning runs, more of them until its best rate is bracketed, final runs.

    Args:
        starts: the learning rates to begin with, by method (a trial whose `lr` and `seed` do not matter).
        run: makes one run; returns the trial's fields and the measures of `scores`.
        path: the file of records. A study that was cut off goes on from it.
        label: of the progress bars.

    Returns:
        All records of the file, sorted by their trials.

    Raises:
        UnbracketedError: a method's best rate is still at an edge after `MOST_EXTENSIONS` more rates.
        ValueError: a grid has fewer than two rates, or steps of more than `STEP`; a seed is tuned and tested on.
    """
    if set(seeds) & set(tuning_seeds):
        raise ValueError(f"seeds {sorted(set(seeds) & set(tuning_seeds))} are both tuned and tested on")
    grids = {method_of(method): sorted(set(rates)) for method, rates in starts.items()}
    for method, rates in grids.items():
        factors = [upper / lower for lower, upper in itertools.pairwise(rates)]
        if not factors or max(factors) > 1.01 * STEP:
            raise ValueError(f"{describe(method)}: give two rates or more, at most a factor of {STEP:g} apart")

    def tune(round_label: str) -> list[dict]:
        trials = [
            dataclasses.replace(method, lr=lr, seed=seed)
            for method, rates in grids.items()
            for lr in rates
            for seed in tuning_seeds
        ]
        return run_missing(trials, run, path, f"{label}, {round_label}", workers)

    records = tune("learning rates")
    for extension in range(MOST_EXTENSIONS + 1):
        at_edge = {}
        for method, rates in grids.items():
            own = [record for record in records if record["lr"] in rates]
            best = _best(own, method, tuning_seeds, SCORE, LOSS)[1]
            if best in (rates[0], rates[-1]):
                at_edge[method] = best
        if not at_edge:
            break
        if extension == MOST_EXTENSIONS:
            method = next(iter(at_edge))
            best_learning_rate([r for r in records if r["lr"] in grids[method]], method, tuning_seeds)  # raises
        for method, best in at_edge.items():
            grids[method] = extend(grids[method], best)
        records = tune(f"extension {extension + 1}")
    chosen = {method: best_learning_rate(records, method, tuning_seeds) for method in grids}
    # Seed by seed, so that a study that is cut short has complete seeds.
    final = [dataclasses.replace(method, lr=lr, seed=seed) for seed in seeds for method, lr in chosen.items()]
    records = sort_records(run_missing(final, run, path, f"{label}, final runs", workers), type(final[0]))
    write_records(path, records)
    return records


def extend(rates: Sequence[float], best: float) -> list[float]:
    """The rates and one more beyond the edge that is best, by the grid's own step there; three significant digits."""
    rates = sorted(rates)
    if best == rates[0]:
        return [float(f"{best * rates[0] / rates[1]:.3g}"), *rates]
    return [*rates, float(f"{best * rates[-1] / rates[-2]:.3g}")]


class BracketedStudy:
    """The records of a study, read by method."""

    def __init__(self, records: Sequence[dict], kind: type[Trial], tuning_seeds: Sequence[int] = TUNING_SEEDS):
        self.records, self.kind, self.tuning_seeds = list(records), kind, tuning_seeds
        self._runs: dict[Trial, dict[float, dict[int, dict]]] = {}
        self._tuning: dict[Trial, list[dict]] = {}
        for record in self.records:
            trial = trial_of(record, kind)
            if trial.seed in tuning_seeds:
                self._tuning.setdefault(method_of(trial), []).append(record)
            else:
                self._runs.setdefault(method_of(trial), {}).setdefault(trial.lr, {})[trial.seed] = record

    @classmethod
    def read(cls, path: Path, kind: type[Trial]) -> "BracketedStudy":
        return cls(read_records(path), kind)

    @property
    def methods(self) -> list[Trial]:
        return list(self._runs)

    def best(self, method: Trial) -> float:
        """The method's best learning rate. Raises UnbracketedError."""
        return best_learning_rate(self._tuning.get(method_of(method), []), method, self.tuning_seeds)

    def curve(self, method: Trial, measure: str = SCORE) -> dict[float, list[float]]:
        """A validation measure of the tuning runs by learning rate; one value per tuning seed."""
        return learning_rate_curve(self._tuning.get(method_of(method), []), method, measure, self.tuning_seeds)

    def tuning_runs(self, method: Trial) -> list[dict]:
        """The records of the method's tuning runs, lowest learning rate first."""
        return sorted(self._tuning.get(method_of(method), []), key=lambda record: record["lr"])

    def runs(self, method: Trial) -> dict[int, dict]:
        """The final records at the method's best learning rate, by seed. Raises KeyError for what was not run."""
        return dict(sorted(self._runs[method_of(method)][self.best(method)].items()))

    def ends(self, method: Trial, measure: str = "test_exact") -> list[float]:
        """A test measure of the final runs at the method's best learning rate, seeds in order."""
        return [record[measure] for record in self.runs(method).values()]

    def gain(self, one: Trial, other: Trial, measure: str = "test_exact") -> Interval:
        """How much more `one` has than `other`, paired by the seeds that both ran, each at its best rate."""
        first, second = self.runs(one), self.runs(other)
        return interval([first[seed][measure] - second[seed][measure] for seed in first if seed in second])


def check_study(records: Sequence[dict], kind: type[Trial], seeds: int = len(SEEDS)) -> None:
    """Check that a study is what this module promises.

    Args:
        seeds: the fewest final seeds of each method.

    Raises:
        UnbracketedError: a method's best learning rate is at an edge.
        ValueError: a method lacks tuning or final runs, has final runs at another rate, or was tuned with a test
            measure or tested with a validation measure.
    """
    study = BracketedStudy(records, kind)
    if lacking := set(study._tuning) ^ set(study._runs):
        raise ValueError(f"{describe(next(iter(lacking)))} has only tuning runs, or only final ones")
    if not study.methods:
        raise ValueError("the study has no runs")
    for record in records:
        tuned, measures = record["seed"] in TUNING_SEEDS, " ".join(record)
        if ("test_" in measures) == tuned or ("validation_" in measures) != tuned:
            raise ValueError(f"tuning runs have validation measures alone, and final runs none: {record}")
    for method in study.methods:
        best = study.best(method)
        if set(study._runs[method]) != {best}:
            others = sorted(set(study._runs[method]) - {best})
            raise ValueError(f"{describe(method)} is best at {best:g}, but has final runs at {others}")
        if len(study.runs(method)) < seeds:
            raise ValueError(f"{describe(method)} has {len(study.runs(method))} final seeds of {seeds}")
