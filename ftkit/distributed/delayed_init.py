"""Delayed initialisation: one rank reads the weights, the others start empty on the meta device.

The scheme of FSDP1, `sync_module_states=True` (github.com/pytorch/pytorch/issues/105840), in today's API. Nothing is
taken on trust: every tensor is filled with NaN before loading, and must be finite after it. `shard_loading` is the
better way.
"""

from collections.abc import Callable
from itertools import chain

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor


def load_from_rank0(
    build_empty: Callable[[], nn.Module],
    build_full: Callable[[], nn.Module],
    shard: Callable[[nn.Module], nn.Module],
    device: torch.device,
) -> nn.Module:
    """A sharded model whose weights only rank 0 has read.

    `build_empty` makes the model on the meta device (called on every rank), `build_full` loads it on the CPU
    (called on rank 0 only), `shard` applies `fully_shard`. Raises RuntimeError naming every tensor that
    loading left unset.
    """
    model = shard(build_empty())
    model.to_empty(device=device)
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # to_empty gives tied modules a tensor each
    poison(model)
    full = build_full() if dist.get_rank() == 0 else None
    state = full.state_dict() if full is not None else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, state, options=options)
    # A state dict leaves out buffers such as the rotary frequencies; rank 0 has computed them while loading.
    sources = dict(full.named_buffers()) if full is not None else {}
    for name, buffer in model.named_buffers():
        if name in sources:
            buffer.copy_(sources[name])
        dist.broadcast(buffer, src=0)
    assert_initialized(model)
    return model


@torch.no_grad()
def poison(model: nn.Module) -> None:
    """Fill every parameter and buffer (this rank's shard of it) with what no training sets.

    That is NaN, and the least number of an integer dtype; booleans and bytes have no such value and stay.
    """
    for _, tensor in _local_tensors(model):
        tensor.fill_(_unset(tensor.dtype))


def assert_initialized(model: nn.Module) -> None:
    """Raise RuntimeError naming each parameter or buffer that is still on meta, poisoned or not finite."""
    unset = [name for name, tensor in _local_tensors(model) if tensor.is_meta or not _is_set(tensor)]
    if unset:
        raise RuntimeError(
            f"{len(unset)} tensors were left unset by loading: {', '.join(unset[:5])}. "
            "A checkpoint holds no rotary frequencies: compute such buffers again (restore_buffers). "
            "For a parameter: is it this model's checkpoint?"
        )


def _unset(dtype: torch.dtype) -> float | int:
    return float("nan") if dtype.is_floating_point else torch.iinfo(dtype).min


def _is_set(tensor: torch.Tensor) -> bool:
    good = torch.isfinite(tensor) if tensor.is_floating_point() else tensor != _unset(tensor.dtype)
    return bool(good.all())


def _local_tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    named = chain(model.named_parameters(), model.named_buffers())
    local = [(name, t.to_local() if isinstance(t, DTensor) else t) for name, t in named]
    return [(name, t.detach()) for name, t in local if t.dtype not in (torch.bool, torch.uint8)]
