"""What a reader asks of the judged runs: means, and one row against another, seed by seed."""

import statistics
from collections.abc import Sequence

from ftkit.studies.adapters.table import judged, of_task


def mean(runs: Sequence[dict], measure: str) -> float:
    return statistics.fmean(run[measure] for run in runs)


def known(run: dict) -> float:
    """The share of the almanac's facts that the model still knows, mean over domains."""
    return statistics.fmean(run["pages_right"].values())


def pairs(
    records: Sequence[dict], task: str, row: str, other: str, model: str = ""
) -> list[tuple[dict, dict]]:
    """The runs of two rows, each at its best rate, seed by seed. Raises ValueError for seeds that do not match."""
    found = list(zip(judged(records, task, row, model), judged(records, task, other, model), strict=True))
    if any(a["seed"] != b["seed"] for a, b in found):
        raise ValueError(f"{row!r} and {other!r} were not run with the same seeds")
    return found


def ratios(records: Sequence[dict], task: str, row: str, other: str, measure: str) -> list[float]:
    return [a[measure] / b[measure] for a, b in pairs(records, task, row, other)]


def at_rate_of(records: Sequence[dict], task: str, row: str, other: str) -> list[dict]:
    """The runs of a row at the rate that is best for another, the judged seeds."""
    theirs = judged(records, task, other)
    rate, seeds = theirs[0]["lr"], {run["seed"] for run in theirs}
    return [r for r in of_task(records, task) if (r["row"], r["lr"]) == (row, rate) and r["seed"] in seeds]
