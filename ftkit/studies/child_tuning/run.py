"""One fine-tune of the study, from a fresh base model to a raw record."""

import dataclasses
import re
import time
from dataclasses import dataclass

import torch

from ftkit.batches import steps_per_epoch
from ftkit.child_tuning import ChildTuningAdamW, fisher_mask
from ftkit.optim import decay_groups
from ftkit.studies.tasks import HEAD, Task, load_task
from ftkit.studies.training import BATCH_SIZE, WEIGHT_DECAY, train_by_step

ADAMW, CONTROL, FREE, DEPENDENT = "AdamW", "AdamW at sqrt(p)", "F", "D"


@dataclass(frozen=True)
class Setting:
    """A run. `p` is reserve_p of F and D; of the control, the p that its rate answers to; 1 for AdamW."""

    task: str
    method: str
    p: float
    lr: float
    seed: int  # of rows, order, masks, and a classifier's head: equal seeds see equal data


def run(setting: Setting, base: str | None = None) -> dict:
    """Train and judge after every epoch; returns the setting, `curves` (one list a measure) and `seconds`."""
    start = time.perf_counter()
    torch.manual_seed(setting.seed)
    task = load_task(setting.task, setting.seed, base)
    steps = steps_per_epoch(task.train, BATCH_SIZE)
    curves: dict[str, list[float]] = {"train_loss": []}
    losses = []
    for loss in train_by_step(task, make_optimizer(setting, task), setting.seed):
        losses.append(loss)
        if len(losses) < steps:
            continue
        curves["train_loss"].append(sum(losses) / steps)
        losses.clear()
        task.model.eval()
        with torch.no_grad():
            for measure, value in task.judge(task.model).items():
                curves.setdefault(measure, []).append(value)
    rounded = {measure: [round(value, 4) for value in values] for measure, values in curves.items()}
    seconds = round(time.perf_counter() - start, 1)
    return {**dataclasses.asdict(setting), "curves": rounded, "seconds": seconds}


def make_optimizer(setting: Setting, task: Task) -> torch.optim.Optimizer:
    """AdamW for AdamW and for the control; ChildTuningAdamW for F and D, over the same decay groups."""
    named = list(task.model.named_parameters())
    if setting.method in (ADAMW, CONTROL):
        return torch.optim.AdamW(decay_groups(named, WEIGHT_DECAY), lr=setting.lr)
    common = {"lr": setting.lr, "reserve_p": setting.p, "seed": setting.seed}
    if setting.method == FREE:
        return ChildTuningAdamW(decay_groups(named, WEIGHT_DECAY), **common)
    # As in the original, the mask is taken at the pretrained weights, and a new head is not masked.
    head = [(name, param) for name, param in named if re.search(HEAD, name)]
    body = [(name, param) for name, param in named if not re.search(HEAD, name)]
    masks = fisher_mask(
        task.model,
        ([row] for row in task.train),
        setting.p,
        per="batch",  # each of one row
        exclude=[HEAD] if head else [],
        loss=task.loss,
    )
    groups = decay_groups(body, WEIGHT_DECAY)
    if head:
        groups.append({"params": head, "mode": "task-free", "reserve_p": 1.0})
    return ChildTuningAdamW(groups, **common, mode="task-dependent", gradient_mask=masks)
