"""Exact match and loss by domain of the almanac."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ftkit._modules import eval_mode
from ftkit.batching import pad
from ftkit.evaluate import Answer, exact_match
from ftkit.loss import IGNORE_INDEX, token_losses

LOSS_BATCH_SIZE = 16  # of `loss_by_domain`, whose peak memory is the logits


def exact_match_by_domain(
    answers: Sequence[Answer], references: Sequence[str], domains: Sequence[str]
) -> dict[str, float]:
    groups: dict[str, list[int]] = defaultdict(list)
    for i, domain in enumerate(domains):
        groups[domain].append(i)
    return {d: exact_match([answers[i] for i in g], [references[i] for i in g]) for d, g in groups.items()}


@torch.no_grad()
def loss_by_domain(
    model: PreTrainedModel, examples: Sequence[dict[str, list[int]]], domains: Sequence[str]
) -> dict[str, float]:
    """Mean cross-entropy in nats per token over each domain's unmasked tokens.

    `examples` come from `ftkit.conversations.encode` or `encode_text`. Raises ValueError for a domain without
    unmasked tokens.
    """
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]["input_ids"]))  # little to pad
    losses_of: dict[int, tuple[float, int]] = {}  # summed loss and unmasked tokens of each example
    with eval_mode(model):
        for start in range(0, len(order), LOSS_BATCH_SIZE):
            rows = order[start : start + LOSS_BATCH_SIZE]
            batch = {name: t.to(model.device) for name, t in pad([examples[i] for i in rows], 0).items()}
            labels = batch.pop("labels")[:, 1:]  # (B, T - 1)
            losses = token_losses(model(**batch).logits[:, :-1], labels)  # (B, T - 1)
            tokens = (labels != IGNORE_INDEX).sum(1)
            losses_of |= zip(rows, zip(losses.sum(1).tolist(), tokens.tolist(), strict=True), strict=True)
    total: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    for i, (_, domain) in enumerate(zip(examples, domains, strict=True)):
        total[domain] += losses_of[i][0]
        count[domain] += losses_of[i][1]
    if empty := [domain for domain, tokens in count.items() if tokens == 0]:
        raise ValueError(f"no unmasked token in domain {empty[0]!r}: are its labels all {IGNORE_INDEX}?")
    return {domain: total[domain] / count[domain] for domain in total}
