"""Overfit one batch and diagnose what went wrong: the labels, what trains, or the learning rate.

The recipe is Karpathy's (https://karpathy.github.io/2019/04/25/recipe/): a model that works drives the loss of one
batch to its floor. Some broken labels can be memorised as well, so the labels are checked too, and the floor is
computed from the batch.

Shapes: B sequences, T tokens, V classes of the output (the vocabulary, for a language model).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ._modules import eval_mode, preserve_state
from .findings import Finding
from .loss import IGNORE_INDEX, token_losses

TOLERANCE = 0.02  # nats per label above the floor; with a floor of 0, a probability of 98 % for the right token
DEFAULT_LRS = (1e-3, 1e-2, 1e-4, 1e-5)
PROBE_FRACTION = 0.1  # of all steps: how long each of several learning rates is tried before the best continues
FLAT_PASSES = 5  # forward passes that show a constant loss

HEALTHY = "healthy"
# Findings about the labels
NO_LABELS = "no-labels"
PADDING_IN_LOSS = "padding-in-loss"
LABELS_SHIFTED = "labels-shifted"
LABELS_UNRELATED = "labels-unrelated"
END_NOT_IN_LOSS = "end-not-in-loss"
# Findings about the run
NOTHING_TRAINS = "nothing-trains"
LOSS_NOT_FINITE = "loss-not-finite"
LR_TOO_HIGH, LR_TOO_LOW = "lr-too-high", "lr-too-low"
NOT_FITTED = "not-fitted"


def _error(code: str, observed: str, why: str, remedy: str) -> Finding:
    return Finding("error", code, observed, why, remedy)


class StartLoss(NamedTuple):
    """Mean losses before training, in nats per label, by place in the answer (a run of labels); NaN for no such place.

    A pretrained model predicts the inside of answers better with their context than alone, whatever V is, if labels
    and inputs belong together.
    """

    overall: float
    first: float
    inside: float
    last: float  # of answers of several labels; often the end-of-turn token
    alone: float  # the labels inside, when the model reads the answers only

    @property
    def too_high(self) -> bool:
        return self.inside > 1.5 * self.alone + 0.5

    def __str__(self) -> str:
        inside = f"inside answers {self.inside:.2f} ({self.alone:.2f} without their context)"
        return f"{self.overall:.2f} nats per label; first labels {self.first:.2f}, {inside}, last {self.last:.2f}"


class LossFloor(NamedTuple):
    loss: float  # nats per label
    accuracy: float


@dataclass(frozen=True)
class Run:
    """One training run; its lists begin before the first step."""

    lr: float
    losses: list[float]  # nats per label
    accuracies: list[float]
    fitted: bool
    has_gradient: bool


@dataclass(frozen=True)
class OverfitResult:
    finding: Finding  # its code is HEALTHY or one of the faults above
    run: Run  # at the requested learning rate; without one, at the best of DEFAULT_LRS
    floor: LossFloor  # the best that any model can reach on this batch
    chance: float  # nats per label: the uniform baseline, log V
    start: StartLoss | None  # of a model that predicts the next token; None for others

    @property
    def healthy(self) -> bool:
        return self.finding.code == HEALTHY

    def __str__(self) -> str:
        f = self.finding
        start = f"\n  start: {self.start}" if self.start else ""
        return f"{f.code}\n  observed: {f.observed}{start}\n  likely cause: {f.why}\n  remedy: {f.remedy}"


def overfit_one_batch(
    model: nn.Module, batch: dict[str, torch.Tensor], lr: float | None = None, steps: int = 200
) -> OverfitResult:
    """Train on one batch (AdamW, no weight decay, no dropout) until its loss is at the floor, and diagnose the run.

    The model's weights, buffers, gradients and modes are restored; a copy of what trains is held in CPU memory.

    Args:
        model: returns `loss` and `logits`.
        batch: the model's arguments, integer `labels` among them.
        lr: the learning rate you mean to train with. After a failure others are tried, to separate a wrong learning
            rate from other faults. By default the best of DEFAULT_LRS is used.
        steps: at most; a healthy batch is usually fitted far sooner.

    Raises ValueError for a batch without integer labels, and for a model that returns no loss.
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
        start = start_loss(model, batch) if next_token else None

        def attempt(lr: float, steps: int = steps) -> Run:
            restart()
            return _run(model, batch, lr, steps, floor, next_token)

        fault = check_labels(batch, next_token)
        run = _best(attempt, DEFAULT_LRS, steps) if lr is None and fault is None else attempt(lr or DEFAULT_LRS[0])
        finding = fault or _finding_of(model, run, floor, chance, start)
        if finding is None:
            other = None if lr is None else _best(attempt, _other_lrs(run), steps)
            finding = _finding_of_failure(run, other, floor)
    return OverfitResult(finding, run, floor, chance, start)


def predicts_next_token(output: Any, labels: torch.Tensor) -> bool:
    """Whether the model shifts labels itself, inferred by computing `output.loss` from `output.logits` both ways."""
    if output.logits.ndim != 3:
        return False
    losses = (nn.functional.cross_entropy(*aligned(output.logits, labels, shifted)) for shifted in (True, False))
    gaps = [abs(loss - output.loss).item() for loss in losses]
    return not gaps[1] < gaps[0]  # with nothing to compare, both are NaN


def aligned(logits: torch.Tensor, labels: torch.Tensor, next_token: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The N outputs in the loss: logits (N, V) in float32, and labels (N,)."""
    if next_token:
        logits, labels = logits[:, :-1], labels[:, 1:]
    kept = labels != IGNORE_INDEX
    return logits[kept].float(), labels[kept]


def start_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> StartLoss | None:
    """Of a model that predicts the next token; None without labels of the shape of `input_ids`. Restores the modes."""
    ids, labels = batch.get("input_ids"), batch["labels"]
    if ids is None or ids.shape != labels.shape or labels[:, 1:].eq(IGNORE_INDEX).all():
        return None
    kept = labels != IGNORE_INDEX
    kept[:, 0] = False  # never predicted
    before, after = nn.functional.pad(kept, (1, -1)), nn.functional.pad(kept, (-1, 1))
    places = kept, kept & ~before, kept & before & after, kept & before & ~after
    rows = [(row[own], inside[own]) for row, inside, own in zip(labels, places[2], kept, strict=True) if own.any()]
    answers, inside = (
        nn.utils.rnn.pad_sequence(values, True, filler)
        for values, filler in zip(zip(*rows, strict=True), (IGNORE_INDEX, False), strict=True)
    )
    real = answers != IGNORE_INDEX
    with eval_mode(model), torch.no_grad():
        losses = token_losses(*aligned(model(**batch).logits, labels, True))  # of the labels in `kept`
        logits = model(input_ids=answers * real, attention_mask=real.long()).logits
    alone = token_losses(*aligned(logits, answers, True))[inside[:, 1:][real[:, 1:]]]
    return StartLoss(*(losses[place[kept]].mean().item() for place in places), alone.mean().item())


def loss_floor(batch: dict[str, torch.Tensor], next_token: bool) -> LossFloor:
    """The entropy floor of the batch: the lowest mean loss that any model can reach, and the accuracy there.

    Sequences with a common prefix and different continuations cannot all be predicted: the floor is the entropy of
    the continuations of each prefix. Computed for next-token models and for one label per sequence; else 0.
    """
    ids, labels = batch.get("input_ids"), batch["labels"]
    if ids is None or not (next_token or labels.ndim == 1):
        return LossFloor(0.0, 1.0)
    attended = batch.get("attention_mask", torch.ones_like(ids)).tolist()
    followers: dict[int, Counter] = defaultdict(Counter)  # prefix id -> counts of the labels that follow it
    prefixes: dict[tuple[int, int], int] = {}  # (prefix id, next token) -> id of the longer prefix
    for row, tokens in enumerate(ids.tolist()):
        prefix = 0
        targets = labels[row].tolist() if next_token else [IGNORE_INDEX] * len(tokens) + [labels[row].item()]
        for i, label in enumerate(targets):
            if label != IGNORE_INDEX and (i or not next_token):
                followers[prefix][label] += 1
            if i < len(tokens) and attended[row][i]:
                prefix = prefixes.setdefault((prefix, tokens[i]), len(prefixes) + 1)
    counts = [count for c in followers.values() for count in c.values()]
    if not counts:
        return LossFloor(math.nan, math.nan)
    nats = sum(n * math.log(c.total() / n) for c in followers.values() for n in c.values())
    return LossFloor(nats / sum(counts), sum(max(c.values()) for c in followers.values()) / sum(counts))


def check_labels(batch: dict[str, torch.Tensor], next_token: bool) -> Finding | None:
    """The first fault of the labels, or None; without `next_token` only missing labels are detected."""
    labels = batch["labels"]
    if not (labels[:, 1:] if next_token else labels).ne(IGNORE_INDEX).any():
        return _error(
            NO_LABELS,
            f"all labels are {IGNORE_INDEX}, so the loss is the mean of nothing: NaN, or 0",
            "no token is in the loss: a chat template without generation markers, a response template "
            "that is not found, or sequences truncated before the answer",
            "print tokens and labels side by side, and fix the code that makes the loss mask",
        )
    if not next_token or "input_ids" not in batch or batch["input_ids"].shape != labels.shape:
        return None
    ids = batch["input_ids"]
    real = batch.get("attention_mask", torch.ones_like(ids)).bool()
    in_loss = labels != IGNORE_INDEX
    if fault := _label_shift(ids, labels):
        return fault
    if differ := int((in_loss & real & (ids != labels)).sum()):
        return _error(
            LABELS_UNRELATED,
            f"{differ} of {int(in_loss.sum())} labels differ from the token at their position",
            "labels and inputs come from different examples, tokenizers or truncations",
            "build the labels from the same example's input_ids, after all padding and truncation",
        )
    if padding := int((in_loss & ~real).sum()):
        return _error(
            PADDING_IN_LOSS,
            f"{padding} of {int(in_loss.sum())} labels are padding",
            "the labels were padded with a token",
            f"pad labels with {IGNORE_INDEX}",
        )
    return _missing_end(ids, labels, real)


def _label_shift(ids: torch.Tensor, labels: torch.Tensor) -> Finding | None:
    in_loss = labels != IGNORE_INDEX
    if torch.equal(ids[in_loss], labels[in_loss]):
        return None
    sides = {"after": (ids[:, 1:], labels[:, :-1]), "before": (ids[:, :-1], labels[:, 1:])}
    for side, (tokens, shifted) in sides.items():
        in_loss = shifted != IGNORE_INDEX
        if in_loss.any() and torch.equal(tokens[in_loss], shifted[in_loss]):
            return _error(
                LABELS_SHIFTED,
                f"each label is the token {side} its own",
                "the labels were shifted before the model, which shifts them itself",
                "give the model unshifted labels, aligned with input_ids",
            )
    return None


def _missing_end(ids: torch.Tensor, labels: torch.Tensor, real: torch.Tensor) -> Finding | None:
    pads = ids[~real].unique()
    after_answer = torch.zeros_like(real)
    after_answer[:, 1:] = labels[:, :-1] != IGNORE_INDEX
    ends = after_answer & real & torch.isin(ids, pads)
    if not ends.any() or (labels[ends] != IGNORE_INDEX).any():
        return None
    return _error(
        END_NOT_IN_LOSS,
        f"{int(ends.sum())} answers end with token {ids[ends][0].item()}, also the pad token; none is in the loss",
        "the labels mask the pad token everywhere, also at the end of an answer",
        "mask padding by position, and use a pad token distinct from EOS",
    )


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
    losses, accuracies, fitted = [], [], False
    for step in range(steps + 1):  # the last pass only measures
        output = model(**batch)
        logits, labels = aligned(output.logits.detach(), batch["labels"], next_token)
        losses.append(output.loss.item())
        accuracies.append((logits.argmax(-1) == labels).float().mean().item())
        fitted = losses[-1] - floor.loss < TOLERANCE and accuracies[-1] > floor.accuracy - 1e-6
        has_gradient = output.loss.requires_grad
        if fitted or not math.isfinite(losses[-1]) or (not has_gradient and step + 1 == FLAT_PASSES):
            break
        if has_gradient and step < steps:
            output.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return Run(lr, losses, accuracies, fitted, has_gradient)


def _best(attempt: Callable[..., Run], lrs: Iterable[float], steps: int) -> Run:
    """Probe each learning rate for a few steps and run the best one in full; stop early if no other can do better."""
    probes = []
    for lr in lrs:
        probe = attempt(lr, max(5, round(PROBE_FRACTION * steps)))
        if probe.fitted or not probe.has_gradient or not math.isfinite(probe.losses[0]):
            return probe
        probes.append(probe)
    finite = [probe for probe in probes if math.isfinite(probe.losses[-1])]
    return attempt(min(finite or probes, key=lambda probe: probe.losses[-1]).lr)


def _other_lrs(run: Run) -> list[float]:
    lower, higher = ([run.lr * 10.0 ** (sign * k) for k in (1, 2, 3)] for sign in (-1, 1))
    fell = run.losses[-1] < run.losses[0]  # False for NaN as well
    return higher + lower if fell else lower + higher


def _finding_of(model: nn.Module, run: Run, floor: LossFloor, chance: float, start: StartLoss | None) -> Finding | None:
    """The finding of a run with correct labels; None if the batch is not fitted and another learning rate may do it."""
    first, last, steps = run.losses[0], run.losses[-1], len(run.losses) - 1
    if not run.has_gradient:
        some = any(p.requires_grad for p in model.parameters())
        return _error(
            NOTHING_TRAINS,
            f"the loss is {first:.2f} in each of {len(run.losses)} passes and has no gradient",
            "no trainable parameter takes part in the loss" if some else "every parameter is frozen",
            "unfreeze what should train after attaching adapters, and count the trainable parameters",
        )
    if run.fitted:
        observed = f"the loss fell from {first:.2f} to {last:.2f} nats in {steps} steps at lr {run.lr:g}"
        if floor.loss > 0:
            observed += f"; sequences that begin alike and differ later keep it above {floor.loss:.2f}"
        if start and start.too_high:
            observed += "; but inside answers it began above the loss without context: does context belong to label?"
        elif start and start.alone > 0.9 * chance:
            observed += "; but it began like an untrained model: are weights and tokenizer those of the pretrained one?"
        return Finding("note", HEALTHY, observed, "model, labels and optimizer work together", "none needed")
    if not math.isfinite(first):
        return _error(
            LOSS_NOT_FINITE,
            f"the loss is {first} before any step",
            "weights that hold NaN or infinity, or activations that overflow in half precision",
            "look for weights that are not finite; load the model in float32 or bfloat16",
        )
    return None


def _finding_of_failure(run: Run, other: Run | None, floor: LossFloor) -> Finding:
    first, last, steps = run.losses[0], run.losses[-1], len(run.losses) - 1
    observed = f"the loss went from {first:.2f} to {last:.2f} nats in {steps} steps at lr {run.lr:g}"
    if floor.loss > 0:
        observed += f" (floor {floor.loss:.2f})"
    if other is not None and other.fitted:
        high = other.lr < run.lr
        observed += f"; at lr {other.lr:g} the batch was fitted in {len(other.losses) - 1} steps"
        cause = "each step overshoots" if high else "each step is too small, or is rounded away in half precision"
        remedy = f"{'lower' if high else 'raise'} the learning rate towards {other.lr:g}"
        return _error(LR_TOO_HIGH if high else LR_TOO_LOW, observed, cause, remedy)
    return _error(
        NOT_FITTED,
        f"{observed}, and no other learning rate tried did better" if other is not None else observed,
        "too little of the model trains, too few steps, or a fault in the model's own code",
        "train more parameters, take more steps, or try a batch of one sequence",
    )
