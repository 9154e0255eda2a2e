"""The few calls into torch and transformers that their authors have not promised to keep, in one place.

Each has a test that fails when a new version changes what is relied on here.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
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


@contextmanager
def fake_tensors() -> Iterator[None]:
    """A context in which tensors have shapes, dtypes, devices and storages of a size, and no memory.

    Device meshes that `fully_shard` makes of others stay real: it asks their tensors of ranks for values.
    """
    concatenate = DeviceMesh._concatenate

    def for_real(*args, **kwargs):
        with unset_fake_temporarily():
            return concatenate(*args, **kwargs)

    DeviceMesh._concatenate = staticmethod(for_real)
    try:
        with FakeTensorMode():
            yield
    finally:
        DeviceMesh._concatenate = staticmethod(concatenate)


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
