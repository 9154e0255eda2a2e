"""The few calls into torch and transformers that their authors have not promised to keep, in one place.

Each has a test that fails when a new version changes what is relied on here.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def local_chunk(tensor: DTensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of this process's shard, and the index in the whole tensor at which it begins.

    It is what torch's distributed checkpoints ask a DTensor for, so masks and checkpoints agree on who holds
    what: uneven and empty shards and those of FSDP on top of tensor parallelism included.
    """
    (chunk,) = tensor.__create_chunk_list__()
    return tuple(chunk.sizes), tuple(chunk.offsets)


def is_flattened_by_fsdp1(param) -> bool:
    """Whether the first FSDP (`FullyShardedDataParallel`) manages the parameter and has flattened it."""
    return getattr(param, "_fsdp_flattened", False)


def fake_tensors() -> FakeTensorMode:
    """A context in which tensors have shapes, dtypes, devices and storages of a size, and no memory."""
    return FakeTensorMode()


@torch.no_grad()
def fill_from_meta(model: nn.Module) -> None:
    """Give every parameter and buffer on meta storage on the CPU: fake, within `fake_tensors`. Ties and shards stay."""
    filled: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in filled:
                    new = _like(tensor)
                    if isinstance(tensor, nn.Parameter):
                        new = nn.Parameter(new, tensor.requires_grad)
                    filled[id(tensor)] = new
                tensors[name] = filled[id(tensor)]
    for module in model.modules():
        if isinstance(module, FSDPModule):  # it keeps tensors of its own beside the module's
            for group in module._get_fsdp_state()._fsdp_param_groups:
                for parameter in group.fsdp_params:
                    parameter.reset_sharded_param()


def _like(tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, DTensor):
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    local = torch.empty(tensor._local_tensor.shape, dtype=tensor.dtype)
    how = {"run_check": False, "shape": tensor.shape, "stride": tensor.stride()}
    return DTensor.from_local(local, tensor.device_mesh, tensor.placements, **how)


@contextmanager
def fake_ranks(world_size: int) -> Iterator[None]:
    """Make this process rank 0 of a process group whose other ranks do not exist; collectives do nothing.

    Raises RuntimeError where a process group exists already.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise RuntimeError(
            "memory is estimated with a process group of its own, and this process is in one already: "
            "estimate before init_process_group, or in a process apart (python -m ftkit.memory)"
        )
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()
