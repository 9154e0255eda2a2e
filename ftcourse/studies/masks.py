"""The mask tournament: which weights to train, and when, compared at equal steps with AdamW on all of them.

    python -m ftcourse.studies.masks
    python -m ftcourse.studies.masks --tasks chat-96 --output mine.jsonl

Each method has its own learning rate, bracketed on both sides on a validation split with seeds of its own (see
`ftcourse.studies.bracketing`); final runs use other seeds and the test split. A run that is in the output is not
repeated. `PREDICTIONS` were written down before the first run; those of F and D know an earlier comparison with AdamW,
on another division of the data. `Tournament` reads the records, `ftcourse.studies.mask_claims`
derives the verdicts. About an hour on one core.
"""

import dataclasses
import functools
import math
import re
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from ftcourse.intervals import Interval, interval
from ftcourse.masks import (
    Magma,
    UpdateMaskedAdamW,
    linear_weights,
    magnitude_masks,
    matching_lora_rank,
    random_masks,
)
from ftkit.batching import steps_per_epoch
from ftkit.child_tuning import ChildTuningAdamW, fisher_information, top_fraction_masks
from ftkit.loss import IGNORE_INDEX, token_losses
from ftkit.models import data_dir, load_base
from ftkit.parameters import decay_groups

from .bracketing import TUNING_SEEDS, BracketedStudy, best_learning_rate, run_bracketed, scores
from .records import make_repeatable, read_records, run_missing, study_parser
from .tasks import (
    BATCH_SIZE,
    HEAD,
    WEIGHT_DECAY,
    Task,
    knowledge_by_domain,
    load_task,
    next_token_scores,
    training_steps,
)

ADAMW, CONTROL = "AdamW", "AdamW at √0.3"
F, F_FEWER, F_MORE = "F 0.3", "F 0.2", "F 0.5"
UPDATE, MAGMA = "update 0.5", "Magma 0.5"
RANDOM, FISHER, FISHER_MORE, FISHER_LINEAR = "random 0.1", "D 0.1", "D 0.3", "D 0.1, linear"
MAGNITUDE, LIFT, LORA = "magnitude 0.1", "LIFT 0.1", "LoRA"
LIFT_RANK = 8  # of 128: the approximation whose largest entries are trained
ADVISED_P = 0.3


@dataclass(frozen=True)
class Prediction:
    """What was expected of a method before any run, against AdamW, each at its own best learning rate.

    `sign` is of the score's difference on new questions: +1 or -1 for one or more percentage points with an interval
    clear of zero, 0 for neither.
    """

    sign: int
    why: str


# Written before the first run of this study, and not changed since.
PREDICTIONS = {
    CONTROL: Prediction(0, "half of F's rate is still near AdamW's optimum, where scores change slowly with the rate"),
    F: Prediction(0, "1/p nearly cancels in Adam, so F is AdamW with a smaller mean update and as much noise"),
    F_FEWER: Prediction(0, "as at 0.3, with a higher best rate: the rate makes up for a smaller mean update"),
    F_MORE: Prediction(0, "as at 0.3, and nearer to AdamW"),
    UPDATE: Prediction(0, "the mean update is AdamW's; the noise that helps a long pretraining hardly matters here"),
    MAGMA: Prediction(0, "as masked updates; sixty steps are too few for a running mean of alignment to matter"),
    RANDOM: Prediction(-1, "a random tenth of the linear layers reaches neither embedding nor LM head"),
    FISHER: Prediction(0, "its tenth has most of the squared gradient, so it should learn as much as all weights"),
    FISHER_MORE: Prediction(0, "as at 0.1, with room to spare"),
    FISHER_LINEAR: Prediction(-1, "without embedding and LM head, but better than the random tenth of the same layers"),
    MAGNITUDE: Prediction(-1, "large weights are not where the gradient is; no better than the random tenth"),
    LIFT: Prediction(-1, "rank reduction picks whole rows and columns; no better than magnitude at this size"),
    LORA: Prediction(-1, "LoRA on the linear layers leaves the untrained rows of the chat tokens as they are"),
}
METHODS = {  # with a learning rate of their own; what answers a question of p or place runs on one task alone
    "chat-96": (ADAMW, *(name for name in PREDICTIONS if name != CONTROL)),
    "truth-500": (ADAMW, F, UPDATE, MAGMA, RANDOM, FISHER, MAGNITUDE, LIFT, LORA),
}


@dataclass(frozen=True)
class Trial:
    """A run. `seed` is of rows, order, masks, adapters and a classifier's head: equal seeds see equal data."""

    task: str
    method: str
    lr: float
    seed: int


def prepare(method: str, task: Task, lr: float, seed: int, base: str | None = None, name: str = ""):
    """The task with its model set up for a method, and the optimizer. `name`, the task's, keeps Fisher scores."""
    model = task.model
    if method == LORA:
        weights = linear_weights(model)
        rank = matching_lora_rank(weights, 0.1)
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=[key.removesuffix(".weight") for key in weights],
            modules_to_save=[key for key, _ in model.named_children() if re.match(HEAD, f"{key}.")] or None,
        )
        model = get_peft_model(model, config)  # not ftkit's `attach`, which is for causal models alone
        task = dataclasses.replace(task, model=model)
        return task, torch.optim.AdamW(decay_groups(model.named_parameters(), WEIGHT_DECAY), lr=lr)
    masks = fixed_masks(method, task, seed, base, name)
    if masks:
        return task, masked_optimizer(model, masks, lr)
    groups = decay_groups(model.named_parameters(), WEIGHT_DECAY)
    if method in (ADAMW, CONTROL):
        return task, torch.optim.AdamW(groups, lr=lr)
    p = float(method.split()[-1])
    if method == UPDATE:
        return task, UpdateMaskedAdamW(groups, lr, keep_p=p, seed=seed)
    if method == MAGMA:
        return task, Magma(groups, lr, keep_p=p, seed=seed)
    return task, ChildTuningAdamW(groups, lr=lr, reserve_p=p, seed=seed)


def fixed_masks(method: str, task: Task, seed: int, base: str | None, name: str) -> dict[str, torch.Tensor]:
    """The masks of a method that trains the same weights in every step; none for the others."""
    weights = linear_weights(task.model)
    if method == RANDOM:
        return random_masks(weights, 0.1, seed)
    if method in (MAGNITUDE, LIFT):
        return magnitude_masks(weights, 0.1, LIFT_RANK if method == LIFT else 0)
    if method in (FISHER, FISHER_MORE, FISHER_LINEAR):
        scores = fisher_scores(name, seed, base)
        chosen = {key: scores[key] for key in weights} if method == FISHER_LINEAR else scores
        return top_fraction_masks(chosen, 0.3 if method == FISHER_MORE else 0.1)
    return {}


@functools.lru_cache(maxsize=16)
def fisher_scores(name: str, seed: int, base: str | None) -> dict[str, torch.Tensor]:
    """Scores at the pretrained weights, of the task's training examples; a new head is not scored."""
    torch.manual_seed(seed)
    task = load_task(name, seed, base)
    heads = [key for key, _ in task.model.named_parameters() if re.search(HEAD, key)]
    return fisher_information(
        task.model,
        ([row] for row in task.train),
        per="batch",  # each of one row
        exclude=[HEAD] if heads else [],
        loss=task.loss,
    )


def masked_optimizer(model: nn.Module, masks: dict[str, torch.Tensor], lr: float) -> ChildTuningAdamW:
    """Trains what is in the masks, and a new head fully, and freezes the rest."""
    for name, param in model.named_parameters():
        param.requires_grad_(name in masks or bool(re.search(HEAD, name)))
    named = list(model.named_parameters())
    groups = decay_groups([(name, param) for name, param in named if name in masks], WEIGHT_DECAY)
    head = [(name, param) for name, param in named if re.search(HEAD, name)]
    if head:
        groups.append({"params": head, "mode": "task-free", "reserve_p": 1.0, "weight_decay": WEIGHT_DECAY})
    return ChildTuningAdamW(groups, lr=lr, mode="task-dependent", gradient_mask=masks)


def run(trial: Trial, base: str | None = None) -> dict:
    """Train; evaluate after every epoch, on validation data for a tuning seed, else on the test split.

    Returns the trial, the measures at the end, `curves` (a list by epoch per measure, and "train_loss"), `trained` (the
    number of weights or adapter entries that an optimizer's step may change) and `seconds`; of final runs also `kept`.
    """
    start = time.perf_counter()
    torch.manual_seed(trial.seed)
    task = load_task(trial.task, trial.seed, base, validation=True)
    task, optimizer = prepare(trial.method, task, trial.lr, trial.seed, base, trial.task)
    steps = steps_per_epoch(task.train, BATCH_SIZE)
    curves: dict[str, list[float]] = {"train_loss": []}
    losses, found = [], {}
    for loss in training_steps(task, optimizer, trial.seed):
        losses.append(loss)
        if len(losses) < steps:
            continue
        curves["train_loss"].append(round(sum(losses) / steps, 4))
        losses.clear()
        found = scores(task, trial.seed)
        for measure, value in found.items():
            curves.setdefault(measure, []).append(value)
    record = {**dataclasses.asdict(trial), **found, "curves": curves, "trained": trained_entries(task.model, optimizer)}
    if trial.seed not in TUNING_SEEDS:
        record["kept"] = round(kept(task.model, base), 4)
    return {**record, "seconds": round(time.perf_counter() - start, 1)}


def trained_entries(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """How many entries a fixed mask selects, or else how many require a gradient."""
    count = 0
    for param in (param for param in model.parameters() if param.requires_grad):
        state = optimizer.state.get(param, {})
        count += len(state["mask_indices"]) if "mask_indices" in state else param.numel()
    return count


def loss_by_place(task: Task) -> tuple[float, float]:
    """Mean loss, in nats per token, of the last token of the training answers, and of their other tokens."""
    task.model.eval()
    with torch.no_grad():
        logits, labels = next_token_scores(task.model, task.train)
    counted = labels != IGNORE_INDEX
    last = counted & (counted.cumsum(1) == counted.sum(1, keepdim=True))
    losses = token_losses(logits, labels)
    return losses[last].mean().item(), losses[counted & ~last].mean().item()


def kept(model: nn.Module, base: str | None) -> float:
    """Fraction of the almanac's facts still answered in the pretraining format, the mean over domains.

    A classifier's body is asked through the pretrained LM head.
    """
    pretrained, tokenizer = load_base(base)
    tuned = model.get_base_model() if isinstance(model, PeftModel) else model
    prefix = pretrained.base_model_prefix
    setattr(pretrained, prefix, getattr(tuned, prefix))
    if tuned.get_output_embeddings() is not None:
        pretrained.set_output_embeddings(tuned.get_output_embeddings())
    pretrained.float().eval()
    with torch.no_grad():
        return statistics.fmean(knowledge_by_domain(pretrained, tokenizer)["pages_right"].values())


# Rates to begin with; the grid grows by its own steps until the best lies inside. Of F and D near those that an earlier
# comparison found; fixed masks and LoRA higher, as their sources advise.
LOW, MIDDLE, HIGH, HIGHER = (5e-4, 1e-3, 2e-3), (1e-3, 2e-3, 5e-3), (2e-3, 5e-3, 1e-2), (5e-3, 1e-2, 2e-2)
CHAT_RATES = {
    ADAMW: LOW,
    **dict.fromkeys((F, F_FEWER, F_MORE, FISHER, FISHER_MORE), MIDDLE),
    UPDATE: LOW,
    **dict.fromkeys((MAGMA, FISHER_LINEAR, LORA), HIGH),
    **dict.fromkeys((RANDOM, MAGNITUDE, LIFT), HIGHER),
}
SCALES = {"chat": 1.0, "truth": 0.4}  # a classifier's rates are lower
SEEDS = {"chat-96": 10, "truth-500": 5}  # final runs of each method


def starts(task: str) -> dict[Trial, tuple[float, ...]]:
    """The learning rates that every method of a task begins with."""
    scale = SCALES[task.split("-")[0]]
    return {
        Trial(task, method, 0.0, -1): tuple(float(f"{scale * lr:.3g}") for lr in CHAT_RATES[method])
        for method in METHODS.get(task, METHODS["chat-96"])
    }


BRACKETED = data_dir() / "results" / "masks.jsonl"
CONTROLS = "masks_control.jsonl"  # beside it: the untuned control, whose rate is a function of F's


SCORE, LOSS = "test_exact", "test_loss"  # on the test split's questions or statements
DOMAINS = "heldout_domains_exact"  # chat tasks only: on questions of domains that are not trained on
WORTHWHILE = 0.01  # one percentage point: a smaller difference of scores is none for a user


class Tournament:
    """The stored runs, by task ("chat-96", "truth-500") and method (ADAMW, CONTROL, F, … of this module).

    What it gives, for every task in `tasks` and method in `methods(task)`:

    - `rate`: the learning rate, bracketed on validation data (of CONTROL: √0.3 times F's), and `tuning`: the validation
      score at every rate that was tried; `tuning_curves`: a validation measure by epoch at one of them;
    - `curves`: a measure by epoch, a list per seed: SCORE, LOSS, DOMAINS (chat only) and "train_loss";
    - `ends`: a measure after the last epoch, or another one, per seed; also "kept", the fraction of facts still known
      in the pretraining format;
    - `effect`: how much more a method has of a measure than AdamW or another method, paired by seed, with its interval;
    - `trained`: how many weights it trains.

    Scores are fractions; losses are in nats per label.
    """

    def __init__(self, path: Path | None = None):
        path = path or BRACKETED
        self.study = BracketedStudy(read_records(path), Trial)
        self._controls = {(r["task"], r["seed"]): r for r in read_records(path.with_name(CONTROLS))}
        self.tasks = tuple(sorted({method.task for method in self.study.methods}))

    def methods(self, task: str) -> tuple[str, ...]:
        """The methods with final runs, in the order of PREDICTIONS behind AdamW."""
        found = {method.method for method in self.study.methods if method.task == task}
        found |= {CONTROL for key in self._controls if key[0] == task}
        return tuple(method for method in (ADAMW, *PREDICTIONS) if method in found)

    def rate(self, task: str, method: str) -> float:
        if method == CONTROL:
            return control_rate(self.study.records, task)
        return self.study.best(Trial(task, method, 0.0, -1))

    def tuning(self, task: str, method: str, measure: str = "validation_exact") -> dict[float, list[float]]:
        """By learning rate, one value per tuning seed."""
        return self.study.curve(Trial(task, method, 0.0, -1), measure)

    def tuning_curves(self, task: str, method: str, lr: float, measure: str = "validation_loss") -> list[list[float]]:
        """[tuning seeds][epochs] at a rate, which need not be the best; empty where that rate was not tried."""
        wanted = [(task, method, lr, seed) for seed in TUNING_SEEDS]
        found = {(r["task"], r["method"], r["lr"], r["seed"]): r["curves"] for r in self.study.records}
        return [found[key][measure] for key in wanted if key in found]

    def runs(self, task: str, method: str) -> dict[int, dict]:
        """The final records by seed, seeds in order. Raises KeyError for what was not run."""
        if method == CONTROL:
            return {seed: record for (name, seed), record in sorted(self._controls.items()) if name == task}
        return self.study.runs(Trial(task, method, 0.0, -1))

    def curves(self, task: str, method: str, measure: str = SCORE) -> list[list[float]]:
        """[seeds][epochs]"""
        return [record["curves"][measure] for record in self.runs(task, method).values()]

    def ends(self, task: str, method: str, measure: str = SCORE, epoch: int = -1) -> list[float]:
        """One value per seed."""
        return list(self._ends(task, method, measure, epoch).values())

    def effect(
        self, task: str, method: str, measure: str = SCORE, *, against: str = ADAMW, epoch: int = -1
    ) -> Interval:
        """How much more `method` has than `against`, over the seeds that both ran."""
        one, other = (self._ends(task, which, measure, epoch) for which in (method, against))
        return interval([one[seed] - other[seed] for seed in one if seed in other])

    def trained(self, task: str, method: str) -> int:
        return next(iter(self.runs(task, method).values()))["trained"]

    def seeds(self, task: str) -> int:
        return len(self.runs(task, ADAMW))

    def sign(self, task: str, method: str) -> int:
        """What was found, in the terms of `Prediction.sign`."""
        found = self.effect(task, method)
        if abs(found.mean) < WORTHWHILE or found.low <= 0 <= found.high:
            return 0
        return 1 if found.mean > 0 else -1

    def best_of(self, task: str, *methods: str) -> str:
        """The method whose best rate has the highest mean validation score."""
        return max(methods, key=lambda method: statistics.fmean(self.tuning(task, method)[self.rate(task, method)]))

    def _ends(self, task: str, method: str, measure: str, epoch: int) -> dict[int, float]:
        runs = self.runs(task, method)
        if measure == "kept":
            return {seed: record["kept"] for seed, record in runs.items()}
        return {seed: record["curves"][measure][epoch] for seed, record in runs.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = study_parser("masks", __doc__, "workers")
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
    make = functools.partial(run, base=given.model)
    for task in given.tasks:
        seeds = range(given.seeds or SEEDS.get(task, 5))
        run_bracketed(starts(task), make, given.output, task, seeds=seeds, workers=given.workers)
        rate = control_rate(read_records(given.output), task)
        controls = [Trial(task, CONTROL, rate, seed) for seed in seeds]
        run_missing(controls, make, given.output.with_name(CONTROLS), f"{task}, control", given.workers)
    print(f"stored in {given.output}")
    return 0


def control_rate(records: Iterable[dict], task: str) -> float:
    """√0.3 times F's best learning rate, rounded to three digits: not tuned."""
    return float(f"{math.sqrt(ADVISED_P) * best_learning_rate(records, Trial(task, F, 0.0, -1)):.3g}")


if __name__ == "__main__":
    sys.exit(main())
