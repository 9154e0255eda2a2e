"""Read the study of a real model: SmolLM2-135M-Instruct learns to write SNIPS requests as function calls.

`python -m experiments.real_model.study --data SNIPS` makes the records (it needs the checkout); this module holds the
runs' description, the predictions that were written down before them, and what notebooks draw. The weights come from a
Q4_1 file and are dequantised, which every figure says (`WEIGHTS`).

One record, a JSON line of `data/results/real_study.jsonl`, is one run:

- the fields of `Trial`;
- `model`, `data`, `precision`: of what and in which arithmetic; `examples` and `steps` of the training; `trained`
  parameters;
- `split`: "validation" for runs with a tuning seed, "test" for final runs;
- `at`: the steps after which the split was evaluated (0 is before the first), and for each of them `loss` (mean over
  the answers' tokens, in nats; null where it is not finite) and `exact` (share of calls whose tokens are all the
  likeliest, so that greedy decoding gives name and arguments exactly);
- `train_loss` of every step; `step_seconds` (median), `seconds` and `load` (of the machine, as other programs ran).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftcourse.intervals import Interval, interval
from ftkit.models import data_dir

from .records import read_records

MODEL = "SmolLM2-135M-Instruct"
WEIGHTS = "Q4_1, dequantised"
BASE, ADAMW, LORA, FREE, FISHER = "untrained", "AdamW", "LoRA", "F", "D"
CONTROL, RANDOM, MAGNITUDE = "AdamW at sqrt(p)", "random mask", "magnitude mask"
FREE_P, MASK_P = 0.3, 0.1
WARMUP = 0.1

# 5e-5 is the default of transformers' TrainingArguments, 2e-5 that of TRL's SFTConfig. Neighbours differ by a factor
# of at most 2.6.
RATES = (1.3e-6, 3.2e-6, 8e-6, 2e-5, 5e-5, 1.2e-4, 3e-4, 7.5e-4, 1.8e-3, 4.5e-3, 1.1e-2, 2.7e-2)
DEFAULTS = (5e-5, 2e-5)
TUNING_SEED, SEEDS = 100, (0, 1, 2)  # of other examples, in another order


@dataclass(frozen=True)
class Trial:
    """A run. `p` is the share of gradient entries that a step keeps; of the control, the p that its rate answers to."""

    method: str
    lr: float  # peak
    seed: int  # of examples, order, masks and adapters: equal seeds see equal data
    p: float = 1.0
    warmup: float = WARMUP  # share of all steps; then the learning rate falls linearly


class RealStudy:
    """The runs of a file of records."""

    def __init__(self, path: Path | None = None):
        self.records = read_records(path or data_dir() / "results" / "real_study.jsonl")

    def runs(self, method: str, lr: float | None = None, *, split: str = "test", warmup: float = WARMUP) -> list[dict]:
        """Records by rate and seed, of one rate or of all."""
        found = [
            r
            for r in self.records
            if (r["method"], r["split"], r["warmup"]) == (method, split, warmup) and lr in (None, r["lr"])
        ]
        return sorted(found, key=lambda r: (r["lr"], r["seed"]))

    def tuning(self, method: str, warmup: float = WARMUP) -> dict[float, tuple[float, float]]:
        """(loss, exact) on the validation split at the end of the tuning run, by learning rate, in their order."""
        runs = self.runs(method, split="validation", warmup=warmup)
        return {r["lr"]: (math.inf if r["loss"][-1] is None else r["loss"][-1], r["exact"][-1]) for r in runs}

    def best_rate(self, method: str, warmup: float = WARMUP) -> float:
        """The learning rate with the least validation loss. Raises ValueError unless it is bracketed on both sides."""
        losses = {lr: loss for lr, (loss, _) in self.tuning(method, warmup).items()}
        if missing := rates_to_run(losses):
            raise ValueError(f"{method}: the best learning rate is not bracketed, {missing} are missing")
        return min(losses, key=losses.__getitem__)

    def ends(self, method: str, measure: str = "exact", lr: float | None = None, **which) -> list[float]:
        """The measure after the last step, of each seed; by default at the method's best rate."""
        return [curve[-1] for curve in self.curves(method, measure, lr, **which)]

    def curves(self, method: str, measure: str = "exact", lr: float | None = None, **which) -> list[list[float]]:
        """[seeds][evaluations] of final runs; `at` says after which steps. Raises ValueError where there is none."""
        if lr is None and method != CONTROL:  # which has one rate
            lr = self.best_rate(method, **which)
        if not (runs := self.runs(method, lr, **which)):
            raise ValueError(f"no final run of {method} at a learning rate of {lr}")
        return [run[measure] for run in runs]

    def at(self) -> list[int]:
        """The steps after which final runs were evaluated."""
        return self.runs(ADAMW)[0]["at"]

    def gain(self, one: tuple, other: tuple, measure: str = "exact", evaluation: int = -1) -> Interval:
        """How much more `one` has than `other`, seed by seed; both are (method,) or (method, learning rate)."""
        pair = [
            {run["seed"]: run[measure][evaluation] for run in self.runs(method, *(rate or self._own_rate(method)))}
            for method, *rate in (one, other)
        ]
        seeds = pair[0].keys() & pair[1].keys()
        return interval([pair[0][seed] - pair[1][seed] for seed in sorted(seeds)])

    def _own_rate(self, method: str) -> tuple:
        return () if method in (CONTROL, BASE) else (self.best_rate(method),)

    def source(self) -> str:
        """What a figure's caption has to say."""
        run = self.records[0]
        return f"{run['model']} ({WEIGHTS}), {run['data']}, {run['examples']} examples, {run['steps']} steps"


def rates_to_run(losses: dict[float, float], start: Sequence[float] = ()) -> list[float]:
    """Learning rates of RATES that the search still needs: those to start with, then both neighbours of the best.

    `losses` by learning rate, on the validation split; empty when the best is bracketed. Raises ValueError where the
    best is the first or the last of RATES, because that is no result.
    """
    if missing := [lr for lr in start if lr not in losses]:
        return missing
    if not losses:
        raise ValueError("a search needs learning rates to start with")
    best = RATES.index(min(losses, key=losses.__getitem__))
    if best in (0, len(RATES) - 1):
        raise ValueError(f"the best learning rate, {RATES[best]}, is on the edge of the grid")
    return [lr for lr in (RATES[best - 1], RATES[best + 1]) if lr not in losses]


@dataclass(frozen=True)
class Prediction:
    """Written down before the runs. `came_true` raises ValueError while its runs are missing."""

    text: str
    reason: str
    came_true: Callable[[RealStudy], bool]


def _spans_zero(found: Interval) -> bool:
    return found.low <= 0 <= found.high


PREDICTIONS = (
    Prediction(
        "full AdamW's best learning rate is 1.2e-4 or 3e-4, above both defaults",
        "a run of under 100 steps has less time than the runs that the defaults were chosen for",
        lambda study: study.best_rate(ADAMW) in (1.2e-4, 3e-4),
    ),
    Prediction(
        "2e-5 loses at least 5 percentage points of exact calls against the best rate",
        "the same",
        lambda study: study.gain((ADAMW,), (ADAMW, 2e-5)).mean >= 0.05,
    ),
    Prediction(
        "LoRA's best learning rate is 5 to 20 times full AdamW's",
        "Schulman et al. 2025, LoRA without regret: about ten times",
        lambda study: 5 <= study.best_rate(LORA) / study.best_rate(ADAMW) <= 20,
    ),
    Prediction(
        "child-tuning F lags: after the first quarter of the run its test loss is higher than AdamW's",
        "its mean update is smaller by about sqrt(p) at equal rates, and a higher rate costs noise",
        lambda study: study.gain((FREE,), (ADAMW,), "loss", 0).low > 0,
    ),
    Prediction(
        "child-tuning F does not exceed AdamW at the end of the run",
        "on pocket-base it did not, each at its best rate",
        lambda study: study.gain((FREE,), (ADAMW,)).low <= 0,
    ),
    Prediction(
        "F and AdamW at sqrt(p) times F's rate do not differ at the end",
        "in Adam the factor 1/p nearly cancels, and a smaller mean update remains",
        lambda study: _spans_zero(study.gain((FREE,), (CONTROL,))),
    ),
    Prediction(
        "child-tuning D at 10 % ends below AdamW in exact calls, by less than 5 percentage points",
        "a tenth of the weights is more than LoRA trains, and the task is narrow",
        lambda study: -0.05 < study.gain((FISHER,), (ADAMW,)).mean < 0,
    ),
    Prediction(
        "a fixed random mask of 10 % ends below the Fisher mask of 10 %",
        "the Fisher mask takes the weights with the largest gradients",
        lambda study: study.gain((RANDOM,), (FISHER,)).mean < 0,
    ),
    Prediction(
        "the mask of the 10 % largest weights ends below the random mask of 10 %",
        "Adam's steps have one size, and large weights change least relative to theirs",
        lambda study: study.gain((MAGNITUDE,), (RANDOM,)).mean < 0,
    ),
)
