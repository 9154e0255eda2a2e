"""What the study's raw runs say: means, 95 % intervals, and differences paired by seed.

Methods are compared on equal seeds, which see equal data in equal order, so the differences are paired.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ftkit.almanac import data_dir
from ftkit.studies.records import read_records

from .plan import DEPENDENT_P, TUNING_SEEDS, best_rate
from .run import ADAMW, DEPENDENT

SCORE, LOSS = "test_exact", "test_loss"  # on held-out questions or statements
DOMAINS = "heldout_domains_exact"  # on questions of domains that are not trained on, where the task has them
# 97.5 % quantiles of Student's t for 1, 2, … degrees of freedom, as in any table of them.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
         2.131, 2.120, 2.110, 2.101, 2.093)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A mean and the 95 % interval of Student's t around it."""

    mean: float
    low: float
    high: float

    @property
    def points(self) -> str:
        """As a difference in percentage points."""
        return f"{100 * self.mean:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def interval(values: Sequence[float]) -> Interval:
    """Raises ValueError for fewer than 2 or more than 20 values."""
    if not 2 <= len(values) <= len(T_975) + 1:
        raise ValueError(f"an interval needs 2 to {len(T_975) + 1} values, and there are {len(values)}")
    mean = statistics.fmean(values)
    half = T_975[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


class Study:
    """The final runs of a file of records, and the rates that its tuning runs chose."""

    def __init__(self, path: Path | None = None):
        self.records = read_records(path or data_dir() / "results" / "child_tuning.jsonl")
        final = [record for record in self.records if record["seed"] not in TUNING_SEEDS]
        kinds = ((task, *task.split("-")) for task in {record["task"] for record in final})
        self.tasks = tuple(task for task, kind, n in sorted(kinds, key=lambda k: (k[1], int(k[2]))))
        self._runs: dict[tuple, dict[int, dict]] = {}
        for record in final:
            runs = self._runs.setdefault((record["task"], record["method"], record["p"]), {})
            runs[record["seed"]] = record

    def rate(self, task: str, method: str, p: float) -> float:
        return best_rate(self.records, task, method, p)

    def curves(self, task: str, method: str, p: float, measure: str = SCORE) -> list[list[float]]:
        """[seeds][epochs], seeds in order. Raises KeyError for what was not run."""
        runs = self._runs[task, method, p]
        return [runs[seed]["curves"][measure] for seed in sorted(runs)]

    def tuning_curves(self, task: str, method: str, p: float, lr: float, measure: str) -> list[list[float]]:
        """[tuning seeds][epochs] of a method at a rate, which need not be its best."""
        wanted = (task, method, p, lr)
        return [
            record["curves"][measure]
            for record in self.records
            if (record["task"], record["method"], record["p"], record["lr"]) == wanted
            and record["seed"] in TUNING_SEEDS
        ]

    def ends(self, task: str, method: str, p: float, measure: str = SCORE, epoch: int = -1) -> list[float]:
        """The measure after an epoch, by default the last, of every seed."""
        return [curve[epoch] for curve in self.curves(task, method, p, measure)]

    def gain(self, task: str, one: tuple, other: tuple, measure: str = SCORE, epoch: int = -1) -> Interval:
        """How much more `one` has than `other`, seed by seed; both are (method, p)."""
        pair = (self.ends(task, *which, measure, epoch) for which in (one, other))
        return interval([a - b for a, b in zip(*pair, strict=True)])

    def best_dependent(self, task: str) -> tuple[str, float]:
        """D with the p whose tuning runs ended best at their best rate."""

        def tuned(p: float) -> float:
            curves = self.tuning_curves(task, DEPENDENT, p, self.rate(task, DEPENDENT, p), SCORE)
            return statistics.fmean(curve[-1] for curve in curves)

        return DEPENDENT, max(DEPENDENT_P, key=tuned)

    def held_out(self) -> dict[str, tuple[str, str]]:
        """(task, measure) by a label for a reader: held-out questions of every task, and domains where there are."""
        labels = {task: (task, SCORE) for task in self.tasks}
        for task in self.tasks:
            if DOMAINS in next(iter(self._runs[task, ADAMW, 1.0].values()))["curves"]:
                labels[f"{task} in held-out domains"] = (task, DOMAINS)
        return labels

    def seeds(self) -> str:
        """How many seeds, in words for a reader."""
        counts = {task: len(self._runs[task, ADAMW, 1.0]) for task in self.tasks}
        return ", ".join(f"{task}: {count}" for task, count in counts.items())
