"""Next-token cross-entropy, and the accumulation of its gradients over micro-batches.

Shapes: B rows of a micro-batch, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

IGNORE_INDEX = -100


def summed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum over the unmasked labels, in float32 and nats; logits (..., V) are already shifted to labels (...)."""
    return nn.functional.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each label (B, T) in nats, 0 where masked; logits (B, T, V) are already shifted."""
    return nn.functional.cross_entropy(
        logits.float().transpose(1, 2), labels, ignore_index=IGNORE_INDEX, reduction="none"
    )


def next_token_loss(
    model: nn.Module, batch: dict[str, torch.Tensor], compute: torch.dtype, mixed: bool
) -> torch.Tensor:
    """The summed cross-entropy of a micro-batch, each tensor (B, T); `mixed` computes in `compute` by autocast.

    A mixture of experts whose configuration has `output_router_logits` adds its load-balancing loss, as its own loss
    does, once per unmasked label: the mean over a micro-batch is then the model's own, and that over several weighs
    each micro-batch by its labels.
    """
    labels = batch["labels"][:, 1:]  # (B, T - 1)
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.autocast(labels.device.type, compute, enabled=mixed):
        outputs = model(**inputs, use_cache=False)
    loss = summed_cross_entropy(outputs.logits[:, :-1], labels)  # of (B, T - 1, V)
    balance = getattr(outputs, "aux_loss", None)
    if balance is not None:
        of_text = model.config.get_text_config()  # which multimodal models read it from
        weight = getattr(model, "router_aux_loss_coef", None) or of_text.router_aux_loss_coef
        loss = loss + weight * balance * (labels != IGNORE_INDEX).sum()
    return loss


def accumulate(
    model: nn.Module,
    micro_batches: Sequence[dict[str, torch.Tensor]],
    loss_of: Callable[[nn.Module, dict[str, torch.Tensor]], torch.Tensor],
    parts: int = 1,
    tokens: int = 1,
) -> list[torch.Tensor]:
    """Accumulate the gradients of all micro-batches, times `parts` / `tokens`; returns the summed loss of each.

    The factor makes the gradient that of the mean over `tokens`, because FSDP averages over the `parts` of a batch.
    Ranks reduce gradients once, with the last micro-batch.
    """
    losses = []
    for number, micro_batch in enumerate(micro_batches, start=1):
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(number == len(micro_batches))
        loss = loss_of(model, micro_batch)
        (loss * parts / tokens).backward()
        losses.append(loss.detach())
    return losses
