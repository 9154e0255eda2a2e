"""What can be wrong with the labels of a batch, and how low its loss can fall: both from the batch alone.

Shapes: B rows, T tokens, V classes of the output (the vocabulary, for a language model).
"""

import math
from collections import Counter, defaultdict
from typing import Any, NamedTuple

import torch
from torch import nn

from ftkit.conversations import IGNORE_INDEX

NOTHING_TO_LEARN = "nothing to learn"
PADDING_LEARNT = "padding is learnt"
SHIFTED = "labels are shifted"
UNRELATED = "labels are not the row's tokens"
END_NOT_LEARNT = "the end is not learnt"


class Finding(NamedTuple):
    name: str
    seen: str
    cause: str
    remedy: str


class Floor(NamedTuple):
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


def aligned(
    logits: torch.Tensor, labels: torch.Tensor, next_token: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The N outputs that the loss is the mean of: logits (N, V) in float32, and their labels (N,)."""
    if next_token:
        logits, labels = logits[:, :-1], labels[:, 1:]
    kept = labels != IGNORE_INDEX
    return logits[kept].float(), labels[kept]


def loss_floor(batch: dict[str, torch.Tensor], next_token: bool) -> Floor:
    """The least mean loss, and the accuracy with it, that any model can reach on this batch.

    Rows that begin alike and go on differently cannot all be predicted: the floor is the entropy of what follows
    each beginning. It is 0 where every beginning has one continuation. Known for next-token models and for one
    label a row; for other models it is taken to be 0.
    """
    ids, labels = batch.get("input_ids"), batch["labels"]
    if ids is None or not (next_token or labels.ndim == 1):
        return Floor(0.0, 1.0)
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
        return Floor(math.nan, math.nan)
    nats = sum(n * math.log(c.total() / n) for c in seen.values() for n in c.values())
    return Floor(nats / sum(counts), sum(max(c.values()) for c in seen.values()) / sum(counts))


def find_fault(batch: dict[str, torch.Tensor], next_token: bool) -> Finding | None:
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
    if fault := _shift(ids, labels):
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
            PADDING_LEARNT,
            f"{padding} of {int(learnt.sum())} labels are padding",
            "the labels were padded with a token",
            f"pad labels with {IGNORE_INDEX}",
        )
    return _missing_end(ids, labels, real)


def _shift(ids: torch.Tensor, labels: torch.Tensor) -> Finding | None:
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
        END_NOT_LEARNT,
        f"{int(ends.sum())} answers end with token {ids[ends][0].item()}, which is also the pad token; none is learnt",
        "the labels mask the pad token wherever it stands, the end of an answer too",
        "mask padding by its position, and pad with a token of its own",
    )
