"""The loss of a run: the mean over all unmasked tokens of a global batch, however many ranks share it."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from ftkit._modules import eval_mode
from ftkit.batching import Example, unmasked_tokens
from ftkit.distributed.mesh import DistributedContext
from ftkit.loss import accumulate, next_token_loss

from .data import Batches


@dataclass(frozen=True)
class Loss:
    """The cross-entropy of a micro-batch, summed over its unmasked tokens, in nats."""

    context: DistributedContext
    compute_dtype: torch.dtype

    def __call__(self, model: nn.Module, micro_batch: dict[str, torch.Tensor]) -> torch.Tensor:
        micro_batch = {name: tensor.to(self.context.device) for name, tensor in micro_batch.items()}
        # FSDP2 casts by itself.
        mixed = not self.context.is_distributed and self.compute_dtype != torch.float32
        return next_token_loss(model, micro_batch, self.compute_dtype, mixed)


def accumulate_gradients(model: nn.Module, examples: list[Example], batches: Batches, loss: Loss) -> float:
    """Accumulate the gradient of the global batch's mean loss in `.grad`; returns that loss, in nats per token.

    Raises FloatingPointError for a loss that is not finite.
    """
    tokens = unmasked_tokens(examples)
    losses = accumulate(model, batches.local(examples), loss, loss.context.dp_size, tokens)
    mean = loss.context.sum(sum(part.item() for part in losses)) / tokens
    if not math.isfinite(mean):
        raise FloatingPointError(f"the loss is {mean}: lower --lr, or look for examples that break the model")
    return mean


@torch.no_grad()
def evaluate(model: nn.Module, examples: list[Example], batches: Batches, loss: Loss) -> float:
    """Mean loss over the unmasked tokens of the examples, in nats, without dropout."""
    with eval_mode(model):
        total = loss.context.sum(sum(loss(model, batch).item() for batch in batches.local(examples)))
    return total / unmasked_tokens(examples)
