"""The loss of a run: the mean over all unmasked tokens of a global batch, whatever number of ranks share it.

Shapes: B rows of a micro-batch, T tokens, V vocabulary.
"""

import math

import torch
from torch import nn

from ftkit._modules import eval_mode
from ftkit.batching import Example, micro_batches, packed_micro_batches, unmasked_tokens
from ftkit.distributed.mesh import DistributedContext
from ftkit.loss import accumulate, next_token_loss

from .config import Config, compute_dtype
from .data import TrainingData


def summed_loss(
    model: nn.Module, batch: dict[str, torch.Tensor], config: Config, context: DistributedContext
) -> torch.Tensor:
    """Cross-entropy summed over the unmasked tokens of a micro-batch, in nats."""
    compute = compute_dtype(config, context)
    batch = {name: tensor.to(context.device) for name, tensor in batch.items()}
    mixed = not context.is_distributed and compute != torch.float32  # FSDP2 casts by itself
    return next_token_loss(model, batch, compute, mixed)


def local_micro_batches(
    rows: list[Example], config: Config, inputs: TrainingData, context: DistributedContext
) -> list[dict[str, torch.Tensor]]:
    """This rank's micro-batches of a global batch, as many as every other rank's."""
    place = inputs.pad_id, context.dp_rank, context.dp_size
    if config.packing:
        return packed_micro_batches(rows, config.micro_batch_size, config.max_length, *place)
    return micro_batches(rows, config.micro_batch_size, *place)


def accumulate_gradients(
    model: nn.Module, batch: list[Example], inputs: TrainingData, config: Config, context: DistributedContext
) -> float:
    """Accumulate the gradient of the global batch's mean loss; returns that loss in nats a token."""
    tokens, mine = unmasked_tokens(batch), local_micro_batches(batch, config, inputs, context)

    def loss_of(model: nn.Module, micro_batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return summed_loss(model, micro_batch, config, context)

    losses = accumulate(model, mine, loss_of, context.dp_size, tokens)
    mean = context.sum(sum(loss.item() for loss in losses)) / tokens
    if not math.isfinite(mean):
        raise RuntimeError(f"the loss is {mean}: lower --lr, or look for rows that break the model")
    return mean


@torch.no_grad()
def evaluate(model: nn.Module, inputs: TrainingData, config: Config, context: DistributedContext) -> float:
    """Mean loss over the unmasked tokens of the evaluation rows, in nats."""
    mine = local_micro_batches(inputs.evaluation, config, inputs, context)
    with eval_mode(model):
        total = context.sum(sum(summed_loss(model, batch, config, context).item() for batch in mine))
    return total / unmasked_tokens(inputs.evaluation)
