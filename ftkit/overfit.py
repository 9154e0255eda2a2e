"""What can be wrong with the labels of a batch, and how low its loss can fall: both from the batch alone.

Shapes: B rows, T tokens, V classes of the output (the vocabulary, for a language model).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ._modules import preserve_state
from .loss import IGNORE_INDEX

NOTHING_TO_LEARN = "nothing to learn"
PADDING_IN_LOSS = "padding is learnt"
SHIFTED = "labels are shifted"
UNRELATED = "labels are not the row's tokens"
END_NOT_IN_LOSS = "the end is not learnt"


class Finding(NamedTuple):
    name: str
    seen: str
    cause: str
    remedy: str


class LossFloor(NamedTuple):
    loss: float  # nats a label
    accuracy: float  # share of the labels


def predicts_next_token(output: Any, labels: torch.Tensor) -> bool:
    """Whether the model shifts labels itself: its output at one token is compared with the next one's label.

    Found out from its loss, which is computed here in both ways; `output` has `loss` and `logits`.
    """
    if output.logits.ndim != 3:
        return False
    gaps = []
    for next_token in (True, False):
        logits, kept = aligned(output.logits, labels, next_token)
        gaps.append(abs(nn.functional.cross_entropy(logits, kept) - output.loss).item())
    return not gaps[1] < gaps[0]  # with nothing to compare, both are NaN


def aligned(logits: torch.Tensor, labels: torch.Tensor, next_token: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The N outputs that the loss is the mean of: logits (N, V) in float32, and their labels (N,)."""
    if next_token:
        logits, labels = logits[:, :-1], labels[:, 1:]
    kept = labels != IGNORE_INDEX
    return logits[kept].float(), labels[kept]


def loss_floor(batch: dict[str, torch.Tensor], next_token: bool) -> LossFloor:
    """The least mean loss, and the accuracy with it, that any model can reach on this batch.

    Rows that begin alike and go on differently cannot all be predicted: the floor is the entropy of what follows
    each beginning. It is 0 where every beginning has one continuation. Known for next-token models and for one
    label a row; for other models it is taken to be 0.
    """
    ids, labels = batch.get("input_ids"), batch["labels"]
    if ids is None or not (next_token or labels.ndim == 1):
        return LossFloor(0.0, 1.0)
    attended = batch.get("attention_mask", torch.ones_like(ids)).tolist()
    seen: dict[int, Counter] = defaultdict(Counter)  # a beginning -> how often each label follows it
    beginnings: dict[tuple[int, int], int] = {}  # (a beginning, the token after it) -> a longer beginning
    for row, tokens in enumerate(ids.tolist()):
        beginning = 0
        wanted = labels[row].tolist() if next_token else [IGNORE_INDEX] * len(tokens) + [labels[row].item()]
        for i, label in enumerate(wanted):
            if label != IGNORE_INDEX and (i or not next_token):
                seen[beginning][label] += 1
            if i < len(tokens) and attended[row][i]:
                beginning = beginnings.setdefault((beginning, tokens[i]), len(beginnings) + 1)
    counts = [count for labels_seen in seen.values() for count in labels_seen.values()]
    if not counts:
        return LossFloor(math.nan, math.nan)
    nats = sum(n * math.log(c.total() / n) for c in seen.values() for n in c.values())
    return LossFloor(nats / sum(counts), sum(max(c.values()) for c in seen.values()) / sum(counts))


def check_labels(batch: dict[str, torch.Tensor], next_token: bool) -> Finding | None:
    """The first fault of the labels, or None. Of models that do not predict the next token, only missing labels."""
    labels = batch["labels"]
    if not (labels[:, 1:] if next_token else labels).ne(IGNORE_INDEX).any():
        return Finding(
            NOTHING_TO_LEARN,
            f"all labels are {IGNORE_INDEX}, so the loss is the mean of nothing: NaN, or 0",
            "the loss mask lets no token through: a chat template without generation marks, an answer marker that "
            "is not found, or rows cut off before the answer",
            "print a row's tokens beside its labels, and mend what makes the loss mask",
        )
    if not next_token or "input_ids" not in batch or batch["input_ids"].shape != labels.shape:
        return None
    ids = batch["input_ids"]
    real = batch.get("attention_mask", torch.ones_like(ids)).bool()
    learnt = labels != IGNORE_INDEX
    if fault := _label_shift(ids, labels):
        return fault
    if differ := int((learnt & real & (ids != labels)).sum()):
        return Finding(
            UNRELATED,
            f"{differ} of {int(learnt.sum())} labels differ from the token at their place",
            "labels and inputs come from different rows, tokenizers or truncations",
            "build the labels from the same row's input_ids, after all padding and truncation",
        )
    if padding := int((learnt & ~real).sum()):
        return Finding(
            PADDING_IN_LOSS,
            f"{padding} of {int(learnt.sum())} labels are padding",
            "the labels were padded with a token",
            f"pad labels with {IGNORE_INDEX}",
        )
    return _missing_end(ids, labels, real)


def _label_shift(ids: torch.Tensor, labels: torch.Tensor) -> Finding | None:
    learnt = labels != IGNORE_INDEX
    if torch.equal(ids[learnt], labels[learnt]):
        return None
    sides = {"after": (ids[:, 1:], labels[:, :-1]), "before": (ids[:, :-1], labels[:, 1:])}
    for side, (tokens, theirs) in sides.items():
        learnt = theirs != IGNORE_INDEX
        if learnt.any() and torch.equal(tokens[learnt], theirs[learnt]):
            return Finding(
                SHIFTED,
                f"each label is the token {side} its own",
                "the labels were shifted before the model, which shifts them itself",
                "give the model labels that stand where their tokens stand",
            )
    return None


def _missing_end(ids: torch.Tensor, labels: torch.Tensor, real: torch.Tensor) -> Finding | None:
    pads = ids[~real].unique()
    after_learnt = torch.zeros_like(real)
    after_learnt[:, 1:] = labels[:, :-1] != IGNORE_INDEX  # an answer goes on or ends here
    ends = after_learnt & real & torch.isin(ids, pads)
    if not ends.any() or (labels[ends] != IGNORE_INDEX).any():
        return None
    return Finding(
        END_NOT_IN_LOSS,
        f"{int(ends.sum())} answers end with token {ids[ends][0].item()}, which is also the pad token; none is learnt",
        "the labels mask the pad token wherever it stands, the end of an answer too",
        "mask padding by its position, and pad with a token of its own",
    )


TOLERANCE = 0.02  # nats a label above the floor; with a floor of zero, the right token then has a chance of 98 %
USUAL_RATES = (1e-3, 1e-2, 1e-4, 1e-5)  # of AdamW, where the caller names none
PROBE = 0.1  # of all steps: how long each of several rates is tried before the best goes on
FLAT_PASSES = 5  # forward passes that show a loss which nothing moves

HEALTHY = "healthy"
FROZEN = "nothing trains"
NOT_FINITE = "not finite from the start"
TOO_HIGH, TOO_LOW = "learning rate too high", "learning rate too low"
NOT_FITTED = "not learnt at any rate"


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
    finding: str  # HEALTHY, or the name of a fault: of this module, or of the labels in ftkit.overfit
    seen: str
    cause: str
    remedy: str
    run: Run  # at the rate that was asked for; without one, the run that went furthest
    floor: LossFloor  # what no model can beat on this batch
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
    _validate(batch, lr, steps)
    device = next(model.parameters()).device
    batch = {name: value.to(device) for name, value in batch.items()}
    with preserve_state(model) as restart, torch.enable_grad():
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

        fault = check_labels(batch, next_token)
        usual = _best(attempt, USUAL_RATES, steps) if lr is None and fault is None else None
        run = usual or attempt(lr or USUAL_RATES[0])
        finding = fault or _finding_of(model, run, floor, chance)
        if finding is None:
            other = None if lr is None else _best(attempt, _other_rates(run), steps)
            finding = _finding_of_failure(run, other, floor)
    return OverfitVerdict(*finding, run, floor, chance)


def _validate(batch: dict[str, torch.Tensor], lr: float | None, steps: int) -> None:
    if "labels" not in batch:
        raise ValueError(f"the batch has no labels, only {', '.join(batch)}: the loss needs them")
    if batch["labels"].is_floating_point():
        raise ValueError("the labels are floats: give token or class numbers, as integers")
    if steps < 1 or (lr is not None and not lr > 0):
        raise ValueError(f"steps and lr should be positive, and are {steps} and {lr}")


def _run(model, batch, lr: float, steps: int, floor: LossFloor, next_token: bool) -> Run:
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


def _finding_of(model: nn.Module, run: Run, floor: LossFloor, chance: float) -> Finding | None:
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


def _finding_of_failure(run: Run, other: Run | None, floor: LossFloor) -> Finding:
    first, last, steps = run.losses[0], run.losses[-1], len(run.losses) - 1
    seen = f"the loss went from {first:.2f} to {last:.2f} nats in {steps} steps at lr {run.lr:g}"
    if floor.loss > 0:
        seen += f" (floor {floor.loss:.2f})"
    if other is not None and other.learnt:
        high = other.lr < run.lr
        seen += f"; at lr {other.lr:g} the batch was learnt in {len(other.losses) - 1} steps"
        cause = "each step overshoots" if high else "each step is too small, or is rounded away in half precision"
        remedy = f"{'lower' if high else 'raise'} the rate towards {other.lr:g}"
        return Finding(TOO_HIGH if high else TOO_LOW, seen, cause, remedy)
    return Finding(
        NOT_FITTED,
        f"{seen}, and no other rate tried did better" if other is not None else seen,
        "too little of the model trains, too few steps, or a fault in the model's own code",
        "train more parameters, take more steps, or try a batch of one row",
    )
