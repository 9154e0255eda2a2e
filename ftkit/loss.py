"""Next-token cross-entropy, and the accumulation of its gradients over micro-batches.

Shapes: B rows of a micro-batch, T tokens, V vocabulary.
"""

from collections.abc import Callable, Sequence
from types import MethodType

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

from ._modules import unwrap_peft

IGNORE_INDEX = -100


class _CrossEntropy(torch.autograd.Function):
    """log-sum-exp minus the label's logit, for logits (..., V) of any dtype, computed in float32.

    torch's own adds V float32 terms one after the other on a processor: over 49,152 classes its gradients are ten
    times as far from the float64 ones. It also keeps the log-probabilities of every token for the backward pass.
    """

    @staticmethod
    def forward(ctx, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        in_loss, target = labels != IGNORE_INDEX, labels.clamp(min=0).unsqueeze(-1)
        log_sum = logits.float().logsumexp(-1)
        ctx.save_for_backward(logits, target, in_loss, log_sum)
        return (log_sum - logits.gather(-1, target).squeeze(-1).float()).masked_fill(~in_loss, 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_losses: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, target, in_loss, log_sum = ctx.saved_tensors
        grad = logits.float().sub(log_sum.unsqueeze(-1)).exp_()  # the probabilities
        grad.scatter_add_(-1, target, torch.full_like(target, -1, dtype=grad.dtype))
        grad.mul_(grad_losses.unsqueeze(-1)).masked_fill_(~in_loss.unsqueeze(-1), 0)
        return grad.to(logits.dtype), None


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each label (...) in float32 and nats, 0 where masked; logits (..., V) are already shifted."""
    return _CrossEntropy.apply(logits, labels)


def summed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum over the unmasked labels, in float32 and nats; logits (..., V) are already shifted to labels (...)."""
    return token_losses(logits, labels).sum()


def chunk_loss(model: nn.Module, chunk: int) -> None:
    """Make `model(**inputs, labels=...)` return the summed cross-entropy with the logits of `chunk` tokens at a time.

    Each chunk's logits are computed again in the backward pass. Without labels the model answers as before. Call it
    before the model is sharded. The loss is right for models whose logits are their head on their last hidden states:
    not where they are scaled or capped, and without a router's loss (compare `next_token_loss`).
    """

    def forward(self: nn.Module, *args, labels: torch.Tensor | None = None, **inputs):
        if labels is None:
            return type(self).forward(self, *args, **inputs)
        inner = self.get_submodule(self.base_model_prefix)
        hidden = inner(*args, **inputs, use_cache=False).last_hidden_state
        hidden, labels = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()  # (B (T - 1), D), (B (T - 1))

        def part(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return summed_cross_entropy(self.get_output_embeddings()(hidden), labels)

        parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
        return sum(checkpoint(part, h, y, use_reentrant=False) for h, y in parts)

    base = unwrap_peft(model)
    base.forward = MethodType(forward, base)


def next_token_loss(
    model: nn.Module, batch: dict[str, torch.Tensor], compute: torch.dtype, mixed: bool, chunked: bool = False
) -> torch.Tensor:
    """The summed cross-entropy of a micro-batch, each tensor (B, T); `mixed` computes in `compute` by autocast.

    `chunked` takes the loss that `chunk_loss` gave the model.

    A mixture of experts whose configuration has `output_router_logits` adds its load-balancing loss, as its own loss
    does, once per unmasked label: the mean over a micro-batch is then the model's own, and that over several weighs
    each micro-batch by its labels.
    """
    if chunked:
        with torch.autocast(batch["labels"].device.type, compute, enabled=mixed):
            return model(**batch)
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
