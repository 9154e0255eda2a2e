"""Checkers for 06_optimizer_and_schedule: a sweep that brackets the best learning rate, and gradient accumulation."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import nn

from . import NotAttempted, WrongAnswer, checker, is_stub, match_known_mistake, require_answer

STEP = 3.0  # the factor between neighbouring learning rates
MOST_RUNS = 12  # of one sweep


class _TooManyRuns(Exception):
    """The sweep does not stop."""


def _counted(measure: Callable[[float], float]) -> tuple[Callable[[float], float], list[float]]:
    tried: list[float] = []

    def counted(lr: float) -> float:
        tried.append(lr)
        if len(tried) > MOST_RUNS:
            raise _TooManyRuns
        return measure(lr)

    return counted, tried


def _valley(best: float) -> Callable[[float], float]:
    """A validation loss whose minimum is at `best`; it is not a number far above it, as where training diverges."""
    return lambda lr: math.nan if lr > 25 * best else 1.0 + abs(math.log(lr / best))


@checker
def check_sweep(sweep, validation_loss: Callable[[float], float] | None = None) -> str:
    """Check `sweep(validation_loss, learning_rates)`: losses by learning rate, extended until the best is bracketed.

    It is tried on made-up losses, then on `validation_loss`, which trains a model. Of the answer, only the learning
    rates and losses count, not their order.
    """
    start = [1e-4, 3e-4, 9e-4]
    for best, edge in ((3e-4, "inside"), (2.7e-3, "upper"), (1.1e-5, "lower")):
        measure, tried = _counted(_valley(best))
        try:
            losses = require_answer(sweep(measure, list(start)))
        except _TooManyRuns:
            raise WrongAnswer(
                f"more than {MOST_RUNS} runs, and no end: extend beyond the edge where the best one lies, and stop "
                "as soon as it has a worse neighbour on both sides."
            ) from None
        _check_losses(losses, tried, start, edge)
    if validation_loss is None:
        return "made-up losses are bracketed on both sides."
    measure, tried = _counted(validation_loss)
    losses = sweep(measure, [2e-5, 6e-5, 1.8e-4])
    best = _check_losses(losses, tried, [2e-5, 6e-5, 1.8e-4], "upper")
    return (
        f"on the model, {len(losses)} learning rates were needed from 2e-5 on: the best is {best / 2e-5:.0f} times as "
        f"high, and the last one tried is worse."
    )


def _check_losses(losses, tried: list[float], start: list[float], edge: str) -> float:
    if not isinstance(losses, dict):
        raise WrongAnswer(
            f"a dict of losses by learning rate is wanted, and your code returns a {type(losses).__name__}."
        )
    if len(tried) > len(set(tried)):
        raise WrongAnswer("a learning rate was trained twice: keep its loss, a run is expensive.")
    if set(losses) != set(tried):
        raise WrongAnswer("the losses should hold each learning rate that was tried, and no other.")
    if missing := [lr for lr in start if lr not in losses]:
        raise WrongAnswer(f"{missing[0]:g} was asked for and not tried.")
    rates = sorted(losses)
    finite = {lr: loss if math.isfinite(loss) else math.inf for lr, loss in losses.items()}
    best = min(finite, key=finite.get)
    if best in (rates[0], rates[-1]):
        side = "upper" if best == rates[-1] else "lower"
        known = "" if set(losses) != set(start) else " You ran the learning rates that were given, and no others."
        raise WrongAnswer(
            f"the best learning rate, {best:.2g}, is at the {side} edge: it is not bracketed.{known} Go on beyond it."
        )
    for lower, upper in itertools.pairwise(rates):
        if upper / lower > 1.05 * STEP:
            raise WrongAnswer(
                f"{lower:.2g} and {upper:.2g} are more than a factor of {STEP:g} apart: the best may lie between."
            )
    if edge == "inside" and len(losses) > len(start):
        raise WrongAnswer("the best of the given learning rates was bracketed already: those runs were not needed.")
    return best


class _Tiny(nn.Module):
    """Token ids to logits, as a causal language model without attention."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 7)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids))


def _micro_batches() -> list[dict[str, torch.Tensor]]:
    """Three micro-batches of 2 examples, with 9, 3 and 2 labels that are not masked."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for masked in ((1, 2), (4, 5), (5, 5)):
        ids = torch.randint(7, (2, 7), generator=generator)
        labels = ids.clone()
        for row, count in enumerate(masked):
            labels[row, : count + 1] = -100
        batches.append({"input_ids": ids, "labels": labels})
    return batches


@checker
def check_accumulate(accumulate) -> str:
    """Check `accumulate(model, micro_batches)`: leaves the gradient of the mean loss over all unmasked labels.

    `model(input_ids)` returns logits (B, T, V); the label of position t is `labels[:, t + 1]`.
    """
    batches = _micro_batches()
    torch.manual_seed(0)
    model = _Tiny()

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    def losses(batch: dict, shift: int = 1) -> torch.Tensor:
        logits, labels = model(batch["input_ids"]), batch["labels"]
        if shift:
            logits, labels = logits[:, :-shift], labels[:, shift:]
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")

    counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
    sums = [losses(batch).sum() for batch in batches]
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    examples = sum(len(batch["labels"]) for batch in batches)
    positions = sum(batch["labels"][:, 1:].numel() for batch in batches)
    expected = gradient(sum(sums) / sum(counts))

    answer = accumulate(model, batches)
    gradients = [parameter.grad for parameter in model.parameters()]
    if all(each is None for each in gradients):
        if answer is ... or is_stub(accumulate):
            raise NotAttempted
        raise WrongAnswer("the model has no gradient: call backward on each micro-batch's loss.")
    found = torch.cat([each.flatten() for each in gradients])

    def same(other: torch.Tensor) -> bool:
        return torch.allclose(found, other, rtol=1e-4, atol=1e-7)

    if same(expected):
        return f"the gradient is that of one batch of {sum(counts)} unmasked labels."
    graph = [losses(batch) for batch in batches]  # fresh graphs: those above are used up
    sums = [each.sum() for each in graph]
    if same(gradient(sum(sums))):
        raise WrongAnswer(
            f"that is the sum over {sum(counts)} labels, a gradient {sum(counts)} times too large. Clipping and AdamW "
            "hide it, SGD does not: divide by the number of labels of all micro-batches."
        )
    means = [losses(batch).sum() / count for batch, count in zip(batches, counts, strict=True)]
    if same(gradient(sum(means))):
        raise WrongAnswer(
            f"that is the sum of {len(batches)} means, about {len(batches)} times too large: the sum-for-mean mistake. "
            "The effective batch would raise the gradient."
        )
    means = [losses(batch).sum() / count for batch, count in zip(batches, counts, strict=True)]
    if same(gradient(sum(means) / len(batches))):
        raise WrongAnswer(
            f"that is the mean of the micro-batches' means. They have {counts} unmasked labels, so a label of the last "
            f"weighs {counts[0] / counts[-1]:.1f} times as much as one of the first: divide sums by the total instead."
        )
    for divisor, what in ((examples, "examples"), (positions, "positions, masked ones included")):
        if same(gradient(sum(losses(batch).sum() for batch in batches) / divisor)):
            raise WrongAnswer(f"you divide by the number of {what}: divide by that of unmasked labels, {sum(counts)}.")
    last = gradient(losses(batches[-1]).sum() / counts[-1])
    if same(last) or same(last * counts[-1] / sum(counts)):
        raise WrongAnswer("only the last micro-batch counts: do not zero the gradient between them.")
    unshifted = sum(losses(batch, 0).sum() for batch in batches)
    if same(gradient(unshifted / sum(int((b["labels"] != -100).sum()) for b in batches))):
        raise WrongAnswer("each position is scored on its own token: the label of position t is labels[:, t + 1].")
    ratio = float(found.norm() / expected.norm())
    match_known_mistake(ratio, {1.0: "the gradient has the right length and the wrong direction."}, rel_tol=1e-3)
    raise WrongAnswer(f"the gradient is {ratio:.2f} times as long as that of the whole batch.")
