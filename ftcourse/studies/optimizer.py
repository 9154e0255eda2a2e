"""Run the optimizer study, or continue it, and store one raw record per run.

    python -m ftcourse.studies.optimizer
    python -m ftcourse.studies.optimizer --model MODEL --output mine.jsonl

On few chat questions: learning rates, weight decay of biases and norm weights, optimizers and schedules, each changed
alone. A run that is in the output is not repeated. About half an hour on two cores.
"""

import dataclasses
import sys
import time
from dataclasses import dataclass, replace

import torch
from torch import nn

from ftkit.parameters import decay_groups

from .records import make_repeatable, run_missing, sort_records, study_parser, write_records
from .tasks import base_of, load_task, training_steps

RATES = (5e-5, 1.5e-4, 5e-4, 1.5e-3, 5e-3)  # 5e-5 is the default of transformers' TrainingArguments
SGD_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
DECAYS = (0.01, 0.1, 10.0)  # usual, large, and absurd: to see any effect in so few steps
MATRICES, EVERYTHING = "matrices", "everything"  # what decays
HIGH = 5e-3  # a peak rate that is too high for most: does a schedule help?
SCHEDULES = (
    ("linear", 0.0),
    ("constant_with_warmup", 0.1),
    ("constant", 0.0),
    ("cosine", 0.1),
)  # beside the usual
SEEDS = 5
STEPS = {"chat-96": 60, "chat-500": 160}  # of a run: 10 epochs of 6, 5 of 32
LONG_WARMUP = 100  # steps: more than the smaller task has


@dataclass(frozen=True)
class Trial:
    """A run; the defaults are the course's. pocket-base was pre-trained by AdamW with beta2 = 0.95."""

    seed: int  # of rows and order: equal seeds see equal data
    model: str = ""  # folder or hub name, "" for pocket-base
    task: str = "chat-96"
    lr: float = 1.5e-3  # peak
    weight_decay: float = 0.01
    decays: str = MATRICES
    optimizer: str = "adamw"  # or "sgd", with a momentum of 0.9
    beta2: float = 0.999
    schedule: str = "linear"  # a name that transformers' get_scheduler knows
    warmup: float = 0.1  # share of all steps


def plan(seeds: int = SEEDS, model: str = "") -> list[Trial]:
    """Every trial once, seed by seed, so that a study that is cut short has complete seeds."""
    trials = []
    for seed in range(seeds):
        usual = Trial(seed, model)
        trials += [replace(usual, task=task, lr=lr) for task in STEPS for lr in RATES]
        trials += [
            replace(usual, weight_decay=decay, decays=what) for decay in DECAYS for what in (MATRICES, EVERYTHING)
        ]
        trials += [replace(usual, beta2=0.95, lr=lr) for lr in RATES]
        trials += [replace(usual, optimizer="sgd", lr=lr) for lr in SGD_RATES]
        trials += [replace(usual, lr=lr, schedule=name, warmup=share) for lr in RATES for name, share in SCHEDULES]
        # The same number of warmup steps, carried from one size of data to another.
        trials += [replace(usual, task=task, warmup=LONG_WARMUP / steps) for task, steps in STEPS.items()]
    return list(dict.fromkeys(trials))


def make_optimizer(model: nn.Module, trial: Trial) -> torch.optim.Optimizer:
    if trial.decays == EVERYTHING:
        groups = list(model.parameters())
    else:
        groups = decay_groups(model.named_parameters(), trial.weight_decay)
    common = {"lr": trial.lr, "weight_decay": trial.weight_decay}
    if trial.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, **common)
    return torch.optim.AdamW(groups, betas=(0.9, trial.beta2), **common)


def run(trial: Trial) -> dict:
    """Fine-tune a fresh model; return the trial, `train_loss` (nats, by step), the evaluation and `seconds`."""
    start = time.perf_counter()
    torch.manual_seed(trial.seed)
    task = load_task(trial.task, trial.seed, base_of(trial.model))
    optimizer = make_optimizer(task.model, trial)
    losses = [round(loss, 4) for loss in training_steps(task, optimizer, trial.seed, trial.schedule, trial.warmup)]
    task.model.eval()
    with torch.no_grad():
        scores = {measure: round(value, 4) for measure, value in task.evaluate(task.model).items()}
    seconds = round(time.perf_counter() - start, 1)
    return {**dataclasses.asdict(trial), "train_loss": losses, **scores, "seconds": seconds}


def main(arguments: list[str] | None = None) -> int:
    parser = study_parser("optimizer", __doc__, "workers", "model")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs of each trial (%(default)s)")
    given = parser.parse_args(arguments)
    if given.seeds < 1 or given.workers < 1:
        parser.error("--seeds and --workers must be at least 1")
    trials = plan(given.seeds, given.model)
    make_repeatable()
    try:
        load_task("chat-96", 0, base_of(given.model))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    records = run_missing(trials, run, given.output, "optimizer study", given.workers)
    write_records(given.output, sort_records(records, Trial))
    print(f"stored in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
