"""The loss of a run: the mean over all unmasked tokens of a global batch, however many ranks share it."""

import math
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

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
    chunked: bool = False  # --loss_chunk

    def __call__(self, model: nn.Module, micro_batch: dict[str, torch.Tensor]) -> torch.Tensor:
        micro_batch = {name: tensor.to(self.context.device) for name, tensor in micro_batch.items()}
        # FSDP2 casts by itself.
        mixed = not self.context.is_distributed and self.compute_dtype != torch.float32
        return next_token_loss(model, micro_batch, self.compute_dtype, mixed, self.chunked)


def accumulate_gradients(model: nn.Module, examples: list[Example], batches: Batches, loss: Loss) -> float:
    """Accumulate the gradient of the global batch's mean loss in `.grad`; returns that loss, in nats per token.

    Raises FloatingPointError for a loss that is not finite.
    """
    tokens = max(unmasked_tokens(examples), 1)  # without a label the loss and the gradient are 0
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


@torch.no_grad()
def check_chunked(model: nn.Module, loss: Loss) -> None:
    """Raise ValueError if the chunked loss is not the model's own. On a sharded model every rank must call this."""
    ids = torch.arange(1, 9).view(2, 4)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    with eval_mode(model):
        whole = replace(loss, chunked=False)(model, batch).item()
        try:
            chunked = loss(model, batch).item()
        except (AttributeError, TypeError) as error:
            chunked, why = math.nan, str(error)
        else:
            why = f"{chunked:.4f} in place of {whole:.4f}: it caps or scales its logits, or adds a router's loss"
    if not abs(chunked - whole) <= 1e-3 * abs(whole):  # rounding in bfloat16
        raise ValueError(f"--loss_chunk: {type(model).__name__} has another loss ({why}): train without it")
    if isinstance(model, FSDPModule):  # an optimizer needs the root's shards, which a forward pass leaves unsharded
        model.reshard()
