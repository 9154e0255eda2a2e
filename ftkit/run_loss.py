"""The loss of a run: the mean over all unmasked tokens of a global batch, whatever number of ranks share it.

Shapes: B rows of a micro-batch, T tokens, V vocabulary.
"""

import math

import torch
from torch import nn

from ftkit.batches import Row, micro_batches, unmasked_tokens
from ftkit.conversations import IGNORE_INDEX
from ftkit.distributed.mesh import Ranks
from ftkit.packing import packed_micro_batches
from ftkit.run_config import Config
from ftkit.run_inputs import Inputs


def compute_dtype(config: Config, ranks: Ranks) -> torch.dtype:
    """The dtype of activations and of gathered weights."""
    return (
        ranks.compute.compute_dtype
        if config.compute_dtype == "auto"
        else getattr(torch, config.compute_dtype)
    )


def summed_loss(
    model: nn.Module, batch: dict[str, torch.Tensor], config: Config, ranks: Ranks
) -> torch.Tensor:
    """Cross-entropy summed over the unmasked tokens of a micro-batch, in nats."""
    device, compute = ranks.compute.device, compute_dtype(config, ranks)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    labels = batch.pop("labels")[:, 1:]  # (B, T - 1)
    mixed = ranks.mesh is None and compute != torch.float32  # FSDP2 casts by itself
    with torch.autocast(device.type, compute, enabled=mixed):
        logits = model(**batch, use_cache=False).logits[:, :-1]  # (B, T - 1, V)
    return nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )


def own_part(rows: list[Row], config: Config, inputs: Inputs, ranks: Ranks) -> list[dict[str, torch.Tensor]]:
    """This rank's micro-batches of a global batch, as many as every other rank's."""
    place = inputs.pad_id, ranks.data_rank, ranks.data_size
    if config.packing:
        return packed_micro_batches(rows, config.micro_batch_size, config.max_length, *place)
    return micro_batches(rows, config.micro_batch_size, *place)


def backward(model: nn.Module, batch: list[Row], inputs: Inputs, config: Config, ranks: Ranks) -> float:
    """Accumulate the gradient of the global batch's mean loss; returns that loss in nats a token."""
    tokens, total = unmasked_tokens(batch), 0.0
    mine = own_part(batch, config, inputs, ranks)
    for i, micro_batch in enumerate(mine, start=1):
        if ranks.mesh is not None:
            model.set_requires_gradient_sync(i == len(mine))
        loss = summed_loss(model, micro_batch, config, ranks)
        # FSDP averages over the parts of the batch, and the mean wanted is over tokens: hence their number.
        (loss * ranks.data_size / tokens).backward()
        total += loss.item()
    mean = ranks.sum(total) / tokens
    if not math.isfinite(mean):
        raise RuntimeError(f"the loss is {mean}: lower --lr, or look for rows that break the model")
    return mean


@torch.no_grad()
def evaluate(model: nn.Module, inputs: Inputs, config: Config, ranks: Ranks) -> float:
    """Mean loss over the unmasked tokens of the evaluation rows, in nats."""
    model.eval()
    mine = own_part(inputs.evaluation, config, inputs, ranks)
    total = ranks.sum(sum(summed_loss(model, batch, config, ranks).item() for batch in mine))
    model.train()
    return total / unmasked_tokens(inputs.evaluation)
