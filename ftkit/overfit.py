"""Can a model learn one batch by heart? The cheapest test of a training run, and what its failures look like.

The idea is Karpathy's ("A Recipe for Training Neural Networks", 2019): before a long run, train on a handful of
rows until the loss is zero. Here the verdict also names what is wrong where it does not get there, or only seems to.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from ftkit.batch_faults import Finding, Floor, aligned, find_fault, loss_floor, predicts_next_token
from ftkit.left_as_it_was import left_as_it_was

TOLERANCE = (
    0.02  # nats a label above the floor; with a floor of zero, the right token then has a chance of 98 %
)
USUAL_RATES = (1e-3, 1e-2, 1e-4, 1e-5)  # of AdamW, where the caller names none
PROBE = 0.1  # of all steps: how long each of several rates is tried before the best goes on
FLAT_PASSES = 5  # forward passes that show a loss which nothing moves

HEALTHY = "healthy"
FROZEN = "nothing trains"
NOT_FINITE = "not finite from the start"
TOO_HIGH, TOO_LOW = "learning rate too high", "learning rate too low"
NOT_LEARNT = "not learnt at any rate"


@dataclass(frozen=True)
class Run:
    """One attempt. The lists begin before the first step, and end where the batch is learnt or the loss not finite."""

    lr: float
    losses: list[float]  # nats a label
    accuracies: list[float]  # share of the labels that are the likeliest output
    learnt: bool
    trains: bool  # whether the loss has a gradient


@dataclass(frozen=True)
class OverfitVerdict:
    finding: str  # HEALTHY, or the name of a fault: of this module, or of the labels in ftkit.batch_faults
    seen: str
    cause: str
    remedy: str
    run: Run  # at the rate that was asked for; without one, the run that went furthest
    floor: Floor  # what no model can beat on this batch
    chance: float  # nats a label: the loss of guessing evenly among all classes

    @property
    def healthy(self) -> bool:
        return self.finding == HEALTHY

    def __str__(self) -> str:
        return f"{self.finding}\n  seen: {self.seen}\n  likely cause: {self.cause}\n  remedy: {self.remedy}"


def overfit_one_batch(
    model: nn.Module, batch: dict[str, torch.Tensor], lr: float | None = None, steps: int = 200
) -> OverfitVerdict:
    """Train on one batch (AdamW, no decay, no dropout) until its loss is at the floor, and judge what happened.

    `batch` holds the model's arguments, integer `labels` among them; any model will do that returns `loss` and
    `logits`. Give the `lr` you mean to train with, to have it judged too: after a failure other rates are tried,
    to tell a wrong rate from another fault. Without `lr`, the best of the usual rates is used. A healthy batch is
    mostly learnt in far fewer than `steps`, and then the run ends.

    The model is left as it was: weights, buffers, gradients, modes. Meanwhile a copy of what trains lies in CPU
    memory. Raises ValueError for a batch without integer labels, and for a model that returns no loss.
    """
    _check(batch, lr, steps)
    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in batch.items()}
    with left_as_it_was(model) as restart, torch.enable_grad():
        model.eval()  # dropout would hold the loss above its floor
        output = model(**batch)
        if getattr(output, "loss", None) is None or getattr(output, "logits", None) is None:
            raise ValueError(f"{type(model).__name__} returns no loss and logits: give it a head that does")
        next_token = predicts_next_token(output, batch["labels"])
        floor, chance = loss_floor(batch, next_token), math.log(output.logits.shape[-1])
        del output

        def attempt(rate: float, steps: int = steps) -> Run:
            restart()
            return _run(model, batch, rate, steps, floor, next_token)

        fault = find_fault(batch, next_token)
        usual = _best(attempt, USUAL_RATES, steps) if lr is None and fault is None else None
        run = usual or attempt(lr or USUAL_RATES[0])
        finding = fault or _judge(model, run, floor, chance)
        if finding is None:
            other = None if lr is None else _best(attempt, _other_rates(run), steps)
            finding = _judge_failure(run, other, floor)
    return OverfitVerdict(*finding, run, floor, chance)


def _check(batch: dict[str, torch.Tensor], lr: float | None, steps: int) -> None:
    if "labels" not in batch:
        raise ValueError(f"the batch has no labels, only {', '.join(batch)}: the loss needs them")
    if batch["labels"].is_floating_point():
        raise ValueError("the labels are floats: give token or class numbers, as integers")
    if steps < 1 or (lr is not None and not lr > 0):
        raise ValueError(f"steps and lr should be positive, and are {steps} and {lr}")


def _run(model, batch, lr: float, steps: int, floor: Floor, next_token: bool) -> Run:
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=lr, weight_decay=0.0) if trainable else None
    losses, accuracies, learnt = [], [], False
    for step in range(steps + 1):  # the last pass only looks at what the last step did
        output = model(**batch)
        logits, labels = aligned(output.logits.detach(), batch["labels"], next_token)
        losses.append(output.loss.item())
        accuracies.append((logits.argmax(-1) == labels).float().mean().item())
        learnt = losses[-1] - floor.loss < TOLERANCE and accuracies[-1] > floor.accuracy - 1e-6
        trains = output.loss.requires_grad
        if learnt or not math.isfinite(losses[-1]) or (not trains and step + 1 == FLAT_PASSES):
            break
        if trains and step < steps:
            output.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return Run(lr, losses, accuracies, learnt, trains)


def _best(attempt: Callable[..., Run], rates: Iterable[float], steps: int) -> Run:
    """Try each rate for a few steps, the best for all of them; return at once a run that no other rate can better."""
    probes = []
    for rate in rates:
        probe = attempt(rate, max(5, round(PROBE * steps)))
        if probe.learnt or not probe.trains or not math.isfinite(probe.losses[0]):
            return probe
        probes.append(probe)
    finite = [probe for probe in probes if math.isfinite(probe.losses[-1])]
    return attempt(min(finite or probes, key=lambda probe: probe.losses[-1]).lr)


def _other_rates(run: Run) -> list[float]:
    lower, higher = ([run.lr * 10.0 ** (sign * k) for k in (1, 2, 3)] for sign in (-1, 1))
    fell = run.losses[-1] < run.losses[0]  # False for NaN as well
    return higher + lower if fell else lower + higher


def _judge(model: nn.Module, run: Run, floor: Floor, chance: float) -> Finding | None:
    """A verdict on a run whose labels are in order, or None if it did not learn the batch and may yet."""
    first, last, steps = run.losses[0], run.losses[-1], len(run.losses) - 1
    if not run.trains:
        some = any(p.requires_grad for p in model.parameters())
        return Finding(
            FROZEN,
            f"the loss is {first:.2f} in each of {len(run.losses)} passes and has no gradient",
            "no trainable parameter takes part in the loss" if some else "every parameter is frozen",
            "unfreeze what should train, after adapters are attached, and count the trainable parameters",
        )
    if run.learnt:
        seen = f"the loss fell from {first:.2f} to {last:.2f} nats in {steps} steps at lr {run.lr:g}"
        if floor.loss > 0:
            seen += f"; rows that begin alike and differ later keep it from falling below {floor.loss:.2f}"
        if first > 1.5 * chance:
            seen += f"; it began far above {chance:.2f}, the loss of guessing"
        return Finding(HEALTHY, seen, "model, labels and optimizer work together", "none needed")
    if not math.isfinite(first):
        return Finding(
            NOT_FINITE,
            f"the loss is {first} before any step",
            "weights that hold NaN or infinity, or activations that overflow in half precision",
            "look for weights that are not finite; load the model in float32 or bfloat16",
        )
    return None


def _judge_failure(run: Run, other: Run | None, floor: Floor) -> Finding:
    first, last, steps = run.losses[0], run.losses[-1], len(run.losses) - 1
    seen = f"the loss went from {first:.2f} to {last:.2f} nats in {steps} steps at lr {run.lr:g}"
    if floor.loss > 0:
        seen += f" (floor {floor.loss:.2f})"
    if other is not None and other.learnt:
        high = other.lr < run.lr
        seen += f"; at lr {other.lr:g} the batch was learnt in {len(other.losses) - 1} steps"
        cause = (
            "each step overshoots" if high else "each step is too small, or is rounded away in half precision"
        )
        remedy = f"{'lower' if high else 'raise'} the rate towards {other.lr:g}"
        return Finding(TOO_HIGH if high else TOO_LOW, seen, cause, remedy)
    return Finding(
        NOT_LEARNT,
        f"{seen}, and no other rate tried did better" if other is not None else seen,
        "too little of the model trains, too few steps, or a fault in the model's own code",
        "train more parameters, take more steps, or try a batch of one row",
    )
