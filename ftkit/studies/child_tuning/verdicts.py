"""The verdicts of the study on what its sources claim, computed from its runs."""

import math
import statistics
from collections.abc import Sequence

from ftkit.claims import Claim
from ftkit.studies.intervals import T_975

from .plan import FREE_P
from .run import ADAMW, CONTROL, FREE
from .summary import LOSS, Study

ADVISED_P = 0.3  # the lower end of "30 to 35 %", for F wherever one p stands for it


def less_spread(steady: Sequence[float], other: Sequence[float]) -> bool:
    """Pitman and Morgan's test of two paired variances: is that of `steady` smaller, at 5 % (two-sided)?"""
    sums = [a + b for a, b in zip(steady, other, strict=True)]
    gaps = [a - b for a, b in zip(steady, other, strict=True)]
    if min(statistics.pstdev(sums), statistics.pstdev(gaps)) == 0:
        return False
    r = statistics.correlation(sums, gaps)  # below zero when `other` varies more
    freedom = len(sums) - 2
    return r < 0 and abs(r) * math.sqrt(freedom / max(1 - r * r, 1e-12)) > T_975[freedom - 1]


def study_claims(study: Study) -> list[Claim]:
    """The sources' claims about child-tuning, judged by the study's runs, each for every task."""
    free, adamw = (FREE, ADVISED_P), (ADAMW, 1.0)
    wright, xu = "Wright 2022, transformer_central and its video on child-tuning under FSDP", "Xu et al. 2021"
    ends = {task: study.gain(task, free, adamw) for task in study.tasks}
    starts = {task: study.gain(task, free, adamw, LOSS, epoch=0) for task in study.tasks}
    lags = {task: starts[task].low > 0 for task in study.tasks}  # its loss is higher
    gains = {task: ends[task].low > 0 for task in study.tasks}
    rivals = {
        task: {p: study.gain(task, (FREE, p), free) for p in FREE_P if p not in (ADVISED_P, 0.35)}
        for task in study.tasks
    }
    good = {task: all(rival.low <= 0 for rival in rivals[task].values()) for task in study.tasks}
    best = {task: max(rivals[task], key=lambda p: rivals[task][p].mean) for task in study.tasks}
    spread = {
        task: [100 * statistics.stdev(study.ends(task, *which)) for which in (free, adamw)]
        for task in study.tasks
    }
    held_out = study.held_out().items()
    wider = {label: study.gain(task, free, adamw, measure) for label, (task, measure) in held_out}
    fixed = {
        label: study.gain(task, study.best_dependent(task), adamw, measure)
        for label, (task, measure) in held_out
    }
    steady = {task: less_spread(study.ends(task, *free), study.ends(task, *adamw)) for task in study.tasks}
    against = {task: study.gain(task, free, study.best_dependent(task)) for task in study.tasks}
    controls = {task: study.gain(task, free, (CONTROL, ADVISED_P)) for task in study.tasks}
    return [
        _claim(
            "child-tuning lags in the first epochs, then exceeds",
            wright,
            {task: lags[task] and gains[task] for task in study.tasks},
            "loss after the first epoch higher by "
            + _each(starts, lambda i: f"{i.mean:+.2f} ({i.low:+.2f} to {i.high:+.2f})")
            + "; score at the end, points: "
            + _each(ends),
        ),
        _claim(
            "a reserve_p of 30 to 35 % is a good start",
            wright,
            good,
            "the best other p against 0.3, points: "
            + ", ".join(
                f"{task} p = {best[task]}: {rivals[task][best[task]].points}" for task in study.tasks
            ),
        ),
        _claim(
            "task-free child-tuning generalises better than AdamW",
            f"{xu}; {wright}",
            {label: found.low > 0 for label, found in wider.items()},
            f"F at p = {ADVISED_P} against AdamW, each at its best rate, points: {_each(wider)}",
        ),
        _claim(
            "task-dependent child-tuning generalises better than AdamW",
            xu,
            {label: found.low > 0 for label, found in fixed.items()},
            f"D at its better p against AdamW, each at its best rate, points: {_each(fixed)}",
        ),
        _claim(
            "child-tuning is more robust: its results vary less from seed to seed",
            wright,
            steady,
            "standard deviation of F and of AdamW, points: "
            + _each(spread, lambda pair: " and ".join(f"{s:.1f}" for s in pair)),
        ),
        _claim(
            "task-free beats task-dependent",
            wright,
            {task: against[task].low > 0 for task in study.tasks},
            "F at p = 0.3 against D at its better p, points: " + _each(against),
        ),
        _claim(
            "child-tuning does more than AdamW at sqrt(p) times its rate",
            f"what {xu} would need",
            {task: controls[task].low > 0 for task in study.tasks},
            "F at p = 0.3 against that control, untuned, points: " + _each(controls),
        ),
    ]


def _each(values: dict, text=lambda value: value.points) -> str:
    return ", ".join(f"{task} {text(value)}" for task, value in values.items())


def _claim(claim: str, source: str, held: dict[str, bool], measured: str) -> Claim:
    """Holds if it holds on every task; on some, it holds under the condition that it is one of those."""
    where = [task for task, found in held.items() if found]
    only_if = f"on {', '.join(where)}" if 0 < len(where) < len(held) else ""
    return Claim(claim, source, bool(where), measured, only_if=only_if)
