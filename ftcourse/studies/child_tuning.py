"""Compare child-tuning with AdamW over seeds, or continue the comparison, and store one raw record per run.

    python -m ftcourse.studies.child_tuning
    python -m ftcourse.studies.child_tuning --tasks chat-96 --output mine.jsonl

Learning rates are searched on seeds of their own; the final runs use the best one. A run that is in the output is not
repeated. `Study` reads the records and `study_claims` derives the verdicts. Hours on two cores.
"""

import dataclasses
import functools
import math
import re
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ftcourse.claims import POCKET, Claim
from ftcourse.intervals import T_975, Interval, interval
from ftkit.batching import steps_per_epoch
from ftkit.child_tuning import ChildTuningAdamW, fisher_mask
from ftkit.models import data_dir
from ftkit.parameters import decay_groups

from .records import (
    make_repeatable,
    read_records,
    run_missing,
    sort_records,
    study_parser,
    write_records,
)
from .tasks import BATCH_SIZE, HEAD, WEIGHT_DECAY, Task, load_task, training_steps

ADAMW, CONTROL, FREE, DEPENDENT = "AdamW", "AdamW at sqrt(p)", "F", "D"


@dataclass(frozen=True)
class Trial:
    """A run. `p` is reserve_p of F and D; of the control, the p that its rate answers to; 1 for AdamW."""

    task: str
    method: str
    p: float
    lr: float
    seed: int  # of rows, order, masks, and a classifier's head: equal seeds see equal data


def run_trial(trial: Trial, base: str | None = None) -> dict:
    """Train and evaluate after every epoch; return the trial, `curves` (a list per measure) and `seconds`."""
    start = time.perf_counter()
    torch.manual_seed(trial.seed)
    task = load_task(trial.task, trial.seed, base)
    steps = steps_per_epoch(task.train, BATCH_SIZE)
    curves: dict[str, list[float]] = {"train_loss": []}
    losses = []
    for loss in training_steps(task, make_optimizer(trial, task), trial.seed):
        losses.append(loss)
        if len(losses) < steps:
            continue
        curves["train_loss"].append(sum(losses) / steps)
        losses.clear()
        task.model.eval()
        with torch.no_grad():
            for measure, value in task.evaluate(task.model).items():
                curves.setdefault(measure, []).append(value)
    rounded = {measure: [round(value, 4) for value in values] for measure, values in curves.items()}
    seconds = round(time.perf_counter() - start, 1)
    return {**dataclasses.asdict(trial), "curves": rounded, "seconds": seconds}


def make_optimizer(trial: Trial, task: Task) -> torch.optim.Optimizer:
    """AdamW for AdamW and for the control; ChildTuningAdamW for F and D, over the same decay groups."""
    named = list(task.model.named_parameters())
    if trial.method in (ADAMW, CONTROL):
        return torch.optim.AdamW(decay_groups(named, WEIGHT_DECAY), lr=trial.lr)
    common = {"lr": trial.lr, "reserve_p": trial.p, "seed": trial.seed}
    if trial.method == FREE:
        return ChildTuningAdamW(decay_groups(named, WEIGHT_DECAY), **common)
    # As in the original, the mask is taken at the pretrained weights, and a new head is not masked.
    head = [(name, param) for name, param in named if re.search(HEAD, name)]
    body = [(name, param) for name, param in named if not re.search(HEAD, name)]
    masks = fisher_mask(
        task.model,
        ([row] for row in task.train),
        trial.p,
        per="batch",  # each of one row
        exclude=[HEAD] if head else [],
        loss=task.loss,
    )
    groups = decay_groups(body, WEIGHT_DECAY)
    if head:
        groups.append({"params": head, "mode": "task-free", "reserve_p": 1.0})
    return ChildTuningAdamW(groups, **common, mode="task-dependent", gradient_mask=masks)


FREE_P = (0.2, 0.3, 0.35, 0.5, 0.75)
DEPENDENT_P = (0.1, 0.3)
METHODS = ((ADAMW, 1.0), *((FREE, p) for p in FREE_P), *((DEPENDENT, p) for p in DEPENDENT_P))
RATES = (3e-4, 8e-4, 2e-3, 5e-3)
TUNING_SEEDS = (100, 101)
SEEDS = {"chat-96": 10, "truth-500": 5, "chat-500": 5, "chat-200": 5}  # final runs of each method


def tuning(task: str) -> list[Trial]:
    """Every method at every rate, on seeds that are used for nothing else."""
    return [Trial(task, method, p, lr, seed) for method, p in METHODS for lr in RATES for seed in TUNING_SEEDS]


def best_rate(records: Iterable[dict], task: str, method: str, p: float) -> float:
    """The rate whose tuning runs end with the best mean score on held-out questions; of equals, least loss.

    Raises ValueError when a tuning run is missing.
    """
    scores = {lr: [] for lr in RATES}
    for record in records:
        same = (record["task"], record["method"], record["p"]) == (task, method, p)
        if same and record["seed"] in TUNING_SEEDS:
            scores[record["lr"]].append((record["curves"]["test_exact"][-1], -record["curves"]["test_loss"][-1]))
    if missing := [lr for lr, found in scores.items() if len(found) < len(TUNING_SEEDS)]:
        raise ValueError(f"{task}, {method} at p = {p}: no {len(TUNING_SEEDS)} tuning runs at rates {missing}")
    return max(scores, key=lambda lr: tuple(map(statistics.fmean, zip(*scores[lr], strict=True))))


def final(records: list[dict], task: str, seeds: int) -> list[Trial]:
    """Every method at its best rate, and for each p of F plain AdamW at sqrt(p) times F's rate, untuned."""
    chosen = [(method, p, best_rate(records, task, method, p)) for method, p in METHODS]
    controls = [(CONTROL, p, math.sqrt(p) * lr) for method, p, lr in chosen if method == FREE]
    # Seed by seed, so that a study that is cut short has complete seeds.
    return [Trial(task, method, p, lr, seed) for seed in range(seeds) for method, p, lr in chosen + controls]


SCORE, LOSS = "test_exact", "test_loss"  # on held-out questions or statements
DOMAINS = "heldout_domains_exact"  # on questions of domains that are not trained on, where the task has them


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
    """The sources' claims about child-tuning, tested on the study's runs, each for every task."""
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
        task: [100 * statistics.stdev(study.ends(task, *which)) for which in (free, adamw)] for task in study.tasks
    }
    held_out = study.held_out().items()
    wider = {label: study.gain(task, free, adamw, measure) for label, (task, measure) in held_out}
    fixed = {label: study.gain(task, study.best_dependent(task), adamw, measure) for label, (task, measure) in held_out}
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
            + ", ".join(f"{task} p = {best[task]}: {rivals[task][best[task]].points}" for task in study.tasks),
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
    return Claim(claim, source, bool(where), measured, "child-tuning", POCKET, only_if=only_if)


def main(arguments: list[str] | None = None) -> int:
    parser = study_parser("child_tuning", __doc__, "workers")
    parser.add_argument("--tasks", nargs="+", default=list(SEEDS), help=f"default: {' '.join(SEEDS)}")
    parser.add_argument("--seeds", type=int, help="final runs of each method (10 on chat-96, 5 elsewhere)")
    parser.add_argument("--model", help="a model folder (pocket-base)")
    given = parser.parse_args(arguments)
    if (1 if given.seeds is None else given.seeds) < 1 or given.workers < 1:
        parser.error("--seeds and --workers must be at least 1")
    try:
        for task in given.tasks:
            load_task(task, TUNING_SEEDS[0], given.model)  # names and sizes that cannot work fail here
    except (ValueError, OSError) as error:
        parser.error(str(error))
    make_repeatable()
    make = functools.partial(run_trial, base=given.model)
    for task in given.tasks:
        records = run_missing(tuning(task), make, given.output, f"{task}, rates", given.workers)
        trials = final(records, task, given.seeds or SEEDS.get(task, 5))
        records = run_missing(trials, make, given.output, task, given.workers)
        write_records(given.output, sort_records(records, Trial))
    print(f"stored in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
