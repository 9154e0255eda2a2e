"""Run the study of the training recipe, or continue it, and store one raw record per run.

    python -m ftcourse.studies.recipe
    python -m ftcourse.studies.recipe --tasks chat-96 --model MODEL --output mine.jsonl

Learning rate, effective batch size, epochs, warmup, schedule, gradient clipping, optimizer and weight decay, each
changed alone, each at its own learning rate, bracketed on validation data (`bracketing`). A run that is in the output
is not repeated. About an hour on one core.
"""

import dataclasses
import itertools
import math
import sys
import time
from dataclasses import dataclass, replace

import torch
from torch import nn

from ftkit.models import data_dir
from ftkit.parameters import decay_groups

from .bracketing import SEEDS, run_bracketed, scores
from .records import make_repeatable, study_parser
from .tasks import base_of, load_task, training_steps

BRACKETED = data_dir() / "results" / "recipe.jsonl"
# Of the usual run, by task: about as many steps, 60 and 64, over few examples often and over many twice.
EPOCHS = {"chat-96": 10, "chat-500": 2}
OTHER_EPOCHS = {"chat-96": (2, 5, 20), "chat-500": (1, 4)}
MATRICES, EVERYTHING = "matrices", "everything"  # what decays


@dataclass(frozen=True)
class Trial:
    """A run; the defaults are the course's. pocket-base was pre-trained by AdamW with beta2 = 0.95."""

    seed: int  # of rows and order: equal seeds see equal data
    model: str = ""  # folder or hub name, "" for pocket-base
    task: str = "chat-96"
    lr: float = 1e-3  # peak
    batch_size: int = 16  # examples of an optimizer step
    epochs: int = 10
    warmup: float = 0.1  # share of all steps
    schedule: str = "linear"  # a name that transformers' get_scheduler knows
    max_grad_norm: float = 1.0  # 0 for no clipping, as in TrainingArguments
    optimizer: str = "adamw"  # or "sgd", with a momentum of 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01
    decays: str = MATRICES


WIDE = (1.23e-5, 3.7e-5, 1.11e-4, 3.33e-4, 1e-3, 3e-3, 9e-3)  # of the usual run, to show the whole curve
RATES = (3.33e-4, 1e-3, 3e-3)  # of its variants, to begin with: a best rate at an edge gets more
SGD_RATES = (0.0333, 0.1, 0.3)

# By question, what changes from the usual run; {} is the usual run itself.
QUESTIONS: dict[str, dict[str, dict]] = {
    "learning rate": {"usual": {}},
    "batch size": {"4": {"batch_size": 4}, "16": {}, "64": {"batch_size": 64}},
    "schedule": {"constant": {"schedule": "constant_with_warmup"}, "linear": {}, "cosine": {"schedule": "cosine"}},
    "warmup": {"0 %": {"warmup": 0.0}, "10 %": {}, "30 %": {"warmup": 0.3}},
    "epochs": {},  # which depend on the task
    "optimizer": {"AdamW": {}, "SGD": {"optimizer": "sgd"}},
    "clipping": {"none": {"max_grad_norm": 0.0}, "1.0": {}, "0.3": {"max_grad_norm": 0.3}},
    "beta2": {"0.999": {}, "0.95": {"beta2": 0.95}},
    "weight decay": {
        "0.01": {},
        "0.1": {"weight_decay": 0.1},
        "0.1, all": {"weight_decay": 0.1, "decays": EVERYTHING},
    },
}

# By task and question, final runs where five left the sign open.
MORE_SEEDS = {(task, question): 10 for task in EPOCHS for question in ("schedule", "clipping")} | {
    ("chat-96", "epochs"): 10
}
MAIN_TASK = "chat-96"  # which has all variants; the other task has not these, to save time
LEFT_OUT = ("cosine", "30 %", "0.3", "0.95", "0.1", "0.1, all")


def usual(task: str, model: str = "") -> Trial:
    return Trial(-1, model, task, epochs=EPOCHS[task])


def variants(task: str, question: str, model: str = "") -> dict[str, Trial]:
    """The trials that answer a question, by label; their learning rate and seed do not matter."""
    changes = QUESTIONS[question]
    if question == "epochs":
        changes = {str(epochs): {"epochs": epochs} for epochs in sorted((EPOCHS[task], *OTHER_EPOCHS[task]))}
    if task != MAIN_TASK:
        changes = {label: change for label, change in changes.items() if label not in LEFT_OUT}
    return {label: replace(usual(task, model), **change) for label, change in changes.items()}


def starts(task: str, question: str, model: str = "") -> dict[Trial, tuple[float, ...]]:
    """The question's methods, with the learning rates to begin with."""
    trials = variants(task, question, model).values()
    grids = {trial: SGD_RATES if trial.optimizer == "sgd" else RATES for trial in trials}
    return grids | {usual(task, model): WIDE}


def make_optimizer(model: nn.Module, trial: Trial) -> torch.optim.Optimizer:
    if trial.decays == EVERYTHING:
        groups = list(model.parameters())
    else:
        groups = decay_groups(model.named_parameters(), trial.weight_decay)
    common = {"lr": trial.lr, "weight_decay": trial.weight_decay}
    if trial.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, **common)
    return torch.optim.AdamW(groups, betas=(0.9, trial.beta2), fused=True, **common)


def run(trial: Trial) -> dict:
    """Fine-tune a fresh model; return the trial, its losses, its scores and `seconds`.

    `first_losses`: of the first three steps; `epoch_losses`: the mean of each epoch, both in nats per token of the
    answers in training. The scores are those of `bracketing.scores`.
    """
    start = time.perf_counter()
    torch.manual_seed(trial.seed)
    task = load_task(trial.task, trial.seed, base_of(trial.model), validation=True)
    task = replace(task, epochs=trial.epochs)
    losses = list(
        training_steps(
            task,
            make_optimizer(task.model, trial),
            trial.seed,
            trial.schedule,
            trial.warmup,
            batch_size=trial.batch_size,
            max_grad_norm=trial.max_grad_norm or math.inf,
        )
    )
    steps = len(losses) // trial.epochs
    epochs = [sum(losses[first : first + steps]) / steps for first in range(0, len(losses), steps)]
    return {
        **dataclasses.asdict(trial),
        "first_losses": [round(loss, 4) for loss in losses[:3]],
        "epoch_losses": [round(loss, 4) for loss in epochs],
        **scores(task, trial.seed),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = study_parser("recipe", __doc__, "workers", "model")
    parser.add_argument("--tasks", nargs="+", choices=EPOCHS, default=list(EPOCHS), help="%(default)s")
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=list(QUESTIONS), help="%(default)s")
    parser.add_argument(
        "--seeds", type=int, help=f"final runs of each method ({len(SEEDS)} or {max(MORE_SEEDS.values())})"
    )
    given = parser.parse_args(arguments)
    if (1 if given.seeds is None else given.seeds) < 1 or given.workers < 1:
        parser.error("--seeds and --workers must be at least 1")
    make_repeatable()
    try:
        load_task("chat-96", 0, base_of(given.model))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for task, question in itertools.product(given.tasks, given.questions):
        grids, label = starts(task, question, given.model), f"{task}, {question}"
        seeds = range(given.seeds or MORE_SEEDS.get((task, question), len(SEEDS)))
        run_bracketed(grids, run, given.output, label, seeds=seeds, workers=given.workers)
    print(f"stored in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
