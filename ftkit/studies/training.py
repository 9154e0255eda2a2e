"""The training loop that the studies share: what they compare, the caller's optimizer or schedule, is outside."""

from collections.abc import Iterator

import torch
from torch import nn
from transformers import get_scheduler

from ftkit.batches import global_batch, steps_per_epoch, unmasked_tokens
from ftkit.studies.tasks import Task

BATCH_SIZE = 16
WEIGHT_DECAY = 0.01
WARMUP = 0.1  # share of all steps; then the rate falls
MAX_GRAD_NORM = 1.0  # of the whole gradient, before it is masked


def train_by_step(
    task: Task,
    optimizer: torch.optim.Optimizer,
    seed: int,
    schedule: str = "linear",
    warmup: float = WARMUP,
    micro_batch: int = BATCH_SIZE,
) -> Iterator[float]:
    """Train the task's model for its epochs; yields the loss of each step after it is taken, in nats a label.

    `seed` is of the rows' order; `schedule` a name that transformers' `get_scheduler` knows; `warmup` a share of
    all steps, which may be over 1; `micro_batch` how many rows go through the model at once.
    """
    steps = task.epochs * steps_per_epoch(task.train, BATCH_SIZE)
    scheduler = get_scheduler(schedule, optimizer, round(warmup * steps), steps)
    for step in range(steps):
        task.model.train()  # a caller may judge between two steps
        batch = global_batch(task.train, step, BATCH_SIZE, seed)
        total = 0.0
        for first in range(0, len(batch), micro_batch):
            rows = batch[first : first + micro_batch]
            loss = task.loss(task.model, rows) * (unmasked_tokens(rows) / unmasked_tokens(batch))
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(task.model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        yield total
