"""Read the study of a real model: SmolLM2-135M-Instruct learns to write SNIPS requests as function calls.

`python -m experiments.real_model.study --data SNIPS` makes the records (it needs the checkout); this module holds the
runs' description, the predictions that were written down before them, and what notebooks draw. The weights come from a
Q4_1 file and are dequantised, which every figure says (`WEIGHTS`).

One record, a JSON line of `data/results/real_study.jsonl`, is one run:

- the fields of `Trial`;
- `model`, `data`, `precision`: of what and in which arithmetic; `examples` and `steps` of the training; `trained`
  parameters;
- `validation_loss` and `validation_exact` after the last step of a tuning run, `test_loss` and `test_exact` of a final
  run: the mean over the answers' tokens, in nats, and the share of calls whose tokens are all the likeliest ones, so
  that greedy decoding gives name and arguments exactly;
- `curve`: the same split's `loss` and `exact` after each of the steps `at` (0 is before the first);
- `train_loss` of every step; `step_seconds` (median), `seconds` and `load` (of the machine: other programs ran).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftcourse.intervals import Interval, interval
from ftkit.models import data_dir

from .bracketing import best_learning_rate, learning_rate_curve, method_of
from .records import read_records, trial_of

MODEL = "SmolLM2-135M-Instruct"
WEIGHTS = "Q4_1, dequantised"
TUNING_SEED, SEEDS = 100, (0, 1, 2)  # of other examples, in another order
DEFAULTS = {5e-5: "transformers", 2e-5: "TRL"}  # learning rates of TrainingArguments and of SFTConfig
WARMUP = 0.1


@dataclass(frozen=True)
class Trial:
    """A run. `p` is the share of gradient entries that a step keeps; of the control, the p that its rate answers to."""

    method: str
    lr: float = 0.0  # peak
    seed: int = -1  # of examples, order, masks and adapters: equal seeds see equal data
    p: float = 1.0
    warmup: float = WARMUP  # share of all steps; then the learning rate falls linearly


BASE, ADAMW, LORA, FREE, FISHER = "untrained", "AdamW", "LoRA", "F", "D"
CONTROL, RANDOM, MAGNITUDE = "AdamW at sqrt(p)", "random mask", "magnitude mask"
NO_WARMUP = "AdamW without warmup"
FREE_P, MASK_P = 0.3, 0.1
METHODS = {  # by name; learning rates and seeds are filled in
    **{name: Trial(name) for name in (BASE, ADAMW, LORA)},
    **{name: Trial(name, p=FREE_P) for name in (FREE, CONTROL)},
    **{name: Trial(name, p=MASK_P) for name in (FISHER, RANDOM, MAGNITUDE)},
    NO_WARMUP: Trial(ADAMW, warmup=0.0),
}


class RealStudy:
    """The runs of a file of records, by the names of METHODS."""

    def __init__(self, path: Path | None = None):
        self.records = read_records(path or data_dir() / "results" / "real_study.jsonl")

    def tuning(self, method: str, measure: str = "loss") -> dict[float, float]:
        """The validation "loss" or "exact" after the tuning run's last step, by learning rate, lowest first.

        Raises ValueError where there is none.
        """
        curve = learning_rate_curve(self.records, METHODS[method], f"validation_{measure}", (TUNING_SEED,))
        return {lr: value for lr, (value,) in curve.items()}

    def tuned(self) -> tuple[str, ...]:
        """The methods that have tuning runs, in the order of METHODS."""
        searched = {method_of(trial_of(r, Trial)) for r in self.records if r["seed"] == TUNING_SEED}
        return tuple(name for name, trial in METHODS.items() if method_of(trial) in searched)

    def best_rate(self, method: str) -> float:
        """The learning rate with most exact calls on the validation split; of equals, with the least loss.

        Raises UnbracketedError, a ValueError, where no worse one was tried on both sides.
        """
        return best_learning_rate(self.records, METHODS[method], (TUNING_SEED,))

    def runs(self, method: str, lr: float | None = None) -> list[dict]:
        """Final records at a learning rate, seeds in order; by default at the method's best, and of the control and
        the untrained model, which are not tuned, all. Raises ValueError where there is none."""
        if lr is None and method not in (CONTROL, BASE):
            lr = self.best_rate(method)
        found = [r for r in self.records if r["seed"] != TUNING_SEED and lr in (None, r["lr"])]
        found = [r for r in found if method_of(trial_of(r, Trial)) == method_of(METHODS[method])]
        if not found:
            raise ValueError(f"there is no final run of {method}" + (f" at {lr:g}" if lr is not None else ""))
        return sorted(found, key=lambda r: r["seed"])

    def ends(self, method: str, measure: str = "exact", lr: float | None = None) -> list[float]:
        """The test "exact" or "loss" after the last step, of each seed."""
        return [run[f"test_{measure}"] for run in self.runs(method, lr)]

    def curves(self, method: str, measure: str = "exact", lr: float | None = None) -> list[list[float]]:
        """[seeds][evaluations] on the test split; `at` has the steps."""
        return [run["curve"][measure] for run in self.runs(method, lr)]

    def at(self) -> list[int]:
        """The steps after which final runs were evaluated."""
        return self.runs(ADAMW)[0]["curve"]["at"]

    def gain(self, one: tuple, other: tuple, measure: str = "exact", evaluation: int = -1) -> Interval:
        """How much more `one` has than `other`, paired by the seeds that both ran, at an evaluation, by default the
        last; both are (method,) or (method, learning rate)."""
        first, second = (
            {run["seed"]: run["curve"][measure][evaluation] for run in self.runs(*which)} for which in (one, other)
        )
        return interval([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])

    def model(self) -> str:
        """What was trained, and its size, as a ledger row names them."""
        run = self.runs(ADAMW)[0]
        return f"{run['model']}, {run['trained'] / 1e6:.1f} M parameters"

    def source(self) -> str:
        """What a figure's caption has to say."""
        run = self.records[0]
        return f"{run['model']}; {run['data']}; {run['examples']} examples, {run['steps']} steps, {run['precision']}"


@dataclass(frozen=True)
class Prediction:
    """Written down before the runs. `came_true` raises ValueError while its runs are missing."""

    text: str
    reason: str
    came_true: Callable[[RealStudy], bool]


def outcome(prediction: Prediction, study: RealStudy) -> str:
    """In words, or "" where its runs are missing."""
    try:
        return "came true" if prediction.came_true(study) else "did not"
    except ValueError:
        return ""


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


def short(lr: float) -> str:
    """As people write it: 5e-5."""
    return f"{lr:.0e}".replace("e-0", "e-")


MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def plot_learning_rates(study: RealStudy, methods: Sequence[str], measure: str = "exact", *, ax=None):
    """Draw the validation "exact" or "loss" of the tuning runs over the learning rate, each method's best one ringed,
    and a line at both libraries' defaults; return the Axes."""
    from matplotlib.ticker import NullFormatter

    from ftcourse.plots import OKABE_ITO, new_axes

    ax = ax or new_axes()[1]
    for lr, library in DEFAULTS.items():
        ax.axvline(lr, color="#999999", linewidth=1, linestyle=":")
        ax.annotate(
            f"{library}\n{short(lr)}",
            (lr, 1),
            xycoords=("data", "axes fraction"),
            va="bottom",
            ha="center",
            fontsize=8,
        )
    for number, method in enumerate(methods):
        curve = study.tuning(method, measure)
        color, best = OKABE_ITO[number % len(OKABE_ITO)], study.best_rate(method)
        ax.plot(list(curve), list(curve.values()), color=color, marker=MARKERS[number % len(MARKERS)], label=method)
        ax.plot([best], [curve[best]], "o", markersize=13, markerfacecolor="none", color=color)
    ax.xaxis.set_minor_formatter(NullFormatter())
    labels = {"exact": "exact calls (validation)", "loss": "validation loss (nats per token)"}
    ax.set(xscale="log", xlabel="peak learning rate", ylabel=labels[measure])
    if measure == "exact":
        ax.set_ylim(0, None)
        ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    ax.legend(frameon=False)
    return ax


def plot_curves(study: RealStudy, methods: Sequence[str], measure: str = "loss", *, ax=None):
    """Draw the test "loss" or "exact" over the steps of the final runs, each method at its best learning rate: the
    mean of the seeds as a line, the seeds as points; return the Axes."""
    from ftcourse.plots import OKABE_ITO, new_axes

    ax = ax or new_axes()[1]
    for number, method in enumerate(methods):
        curves = study.curves(method, measure)
        look = {"color": OKABE_ITO[number % len(OKABE_ITO)], "marker": MARKERS[number % len(MARKERS)]}
        for curve in curves:
            ax.plot(study.at(), curve, linestyle="", markersize=3, alpha=0.5, **look)
        means = [sum(values) / len(values) for values in zip(*curves, strict=True)]
        ax.plot(study.at(), means, label=method, **look)
    labels = {"exact": "exact calls (test)", "loss": "test loss (nats per token)"}
    ax.set(xlabel="optimizer step", ylabel=labels[measure], xticks=study.at())
    if measure == "exact":
        ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    ax.legend(frameon=False)
    return ax
