"""Run the optimizer study, or go on with it, and store one raw record a run.

    python -m ftcourse.studies.optimizer
    python -m ftcourse.studies.optimizer --model MODEL --output mine.jsonl

On few chat questions: rates, the decay of biases and gains, optimizers and schedules, each changed alone. A run that
is in the output already is not done again. About half an hour on two cores.
"""

import argparse
import dataclasses
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from torch import nn

from ftkit.models import data_dir, resolve_model
from ftkit.parameters import decay_groups

from .records import run_missing, sort_records, write_records
from .tasks import load_task, training_steps

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
    """Every setting once, seed by seed, so that a study that is cut short has complete seeds."""
    settings = []
    for seed in range(seeds):
        usual = Trial(seed, model)
        settings += [replace(usual, task=task, lr=lr) for task in STEPS for lr in RATES]
        settings += [
            replace(usual, weight_decay=decay, decays=what) for decay in DECAYS for what in (MATRICES, EVERYTHING)
        ]
        settings += [replace(usual, beta2=0.95, lr=lr) for lr in RATES]
        settings += [replace(usual, optimizer="sgd", lr=lr) for lr in SGD_RATES]
        settings += [replace(usual, lr=lr, schedule=name, warmup=share) for lr in RATES for name, share in SCHEDULES]
        # The same number of warmup steps, carried from one size of data to another.
        settings += [replace(usual, task=task, warmup=LONG_WARMUP / steps) for task, steps in STEPS.items()]
    return list(dict.fromkeys(settings))


def make_optimizer(model: nn.Module, setting: Trial) -> torch.optim.Optimizer:
    if setting.decays == EVERYTHING:
        groups = list(model.parameters())
    else:
        groups = decay_groups(model.named_parameters(), setting.weight_decay)
    common = {"lr": setting.lr, "weight_decay": setting.weight_decay}
    if setting.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, **common)
    return torch.optim.AdamW(groups, betas=(0.9, setting.beta2), **common)


def run(setting: Trial) -> dict:
    """One fine-tune from a fresh model: the setting, `train_loss` (nats, by step), the judgement, `seconds`."""
    start = time.perf_counter()
    torch.manual_seed(setting.seed)
    base = resolve_model(setting.model or data_dir() / "pocket-base")  # whatever FTKIT_MODEL says: records name it
    task = load_task(setting.task, setting.seed, base)
    optimizer = make_optimizer(task.model, setting)
    losses = [
        round(loss, 4) for loss in training_steps(task, optimizer, setting.seed, setting.schedule, setting.warmup)
    ]
    task.model.eval()
    with torch.no_grad():
        judged = {measure: round(value, 4) for measure, value in task.judge(task.model).items()}
    seconds = round(time.perf_counter() - start, 1)
    return {**dataclasses.asdict(setting), "train_loss": losses, **judged, "seconds": seconds}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ftcourse.studies.optimizer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    output = data_dir() / "results" / "optimizer.jsonl"
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs of each setting (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (one for each core)")
    parser.add_argument("--model", default="", help="a model folder or name (pocket-base)")
    parser.add_argument("--output", type=Path, default=output, help="raw records (%(default)s)")
    given = parser.parse_args(arguments)
    if given.seeds < 1 or given.workers < 1:
        parser.error("--seeds and --workers must be at least 1")
    settings = plan(given.seeds, given.model)
    transformers.utils.logging.disable_progress_bar()  # of loading: one bar is enough
    torch.set_num_threads(1)  # sums in one order: the records repeat
    try:
        load_task("chat-96", 0, resolve_model(given.model or data_dir() / "pocket-base"))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    records = run_missing(settings, run, given.output, "optimizer study", given.workers)
    write_records(given.output, sort_records(records, Trial))
    print(f"stored in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
