"""The cross-entropy of next tokens, summed: runs divide it by the tokens of a global batch, and estimates trace it.

Shapes: B rows of a micro-batch, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule


def summed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Over the unmasked labels, in float32 and nats; logits (..., V) already stand beside what they predict, (...)."""
    return nn.functional.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )


def next_token_loss(
    model: nn.Module, batch: dict[str, torch.Tensor], compute: torch.dtype, mixed: bool
) -> torch.Tensor:
    """The summed cross-entropy of a micro-batch, each tensor (B, T); `mixed` computes in `compute` by autocast."""
    labels = batch["labels"][:, 1:]  # (B, T - 1)
    given = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.autocast(labels.device.type, compute, enabled=mixed):
        logits = model(**given, use_cache=False).logits[:, :-1]  # (B, T - 1, V)
    return summed_cross_entropy(logits, labels)


def accumulate(
    model: nn.Module,
    micro_batches: Sequence[dict[str, torch.Tensor]],
    loss_of: Callable[[nn.Module, dict[str, torch.Tensor]], torch.Tensor],
    parts: int = 1,
    tokens: int = 1,
) -> list[torch.Tensor]:
    """Add up in `.grad` the gradients of all micro-batches, times `parts` / `tokens`; returns their losses, summed.

    FSDP averages over the `parts` of a batch, and the mean wanted is over `tokens`. Ranks reduce gradients once, with
    the last micro-batch.
    """
    losses = []
    for number, micro_batch in enumerate(micro_batches, start=1):
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(number == len(micro_batches))
        loss = loss_of(model, micro_batch)
        (loss * parts / tokens).backward()
        losses.append(loss.detach())
    return losses


IGNORE_INDEX = -100
