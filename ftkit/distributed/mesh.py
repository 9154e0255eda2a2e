"""The ranks of a run: start them, know which one this is and what it shares with whom, end them cleanly.

One program serves one process and many: without torchrun there is one rank and no process group. With several,
the ranks form a mesh of three dimensions, whose product is the number of ranks:

- `dp_replicate`: groups that hold the same shards and see other rows (HSDP: for instance one group a machine),
- `dp_shard`: ranks that share the parameters among them and see other rows (FSDP),
- `tp`: ranks that share each matrix and see the same rows (tensor parallelism: the ranks nearest to each other).
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from .device import DeviceInfo

DIMENSIONS = ("dp_replicate", "dp_shard", "tp")


@dataclass(frozen=True)
class ParallelDims:
    dp_replicate: int = 1
    dp_shard: int = 1
    tp: int = 1

    def __str__(self) -> str:
        return f"{self.dp_replicate},{self.dp_shard},{self.tp}"


def parse_parallel_dims(text: str, world_size: int) -> ParallelDims:
    """Read `dp_replicate,dp_shard,tp`, in which one -1 means "what is left"; empty is 1,-1,1: FSDP over all ranks.

    Raises ValueError when it is not three such numbers or their product is not the number of ranks.
    """
    form = "--mesh takes dp_replicate,dp_shard,tp, three whole numbers of which one may be -1, such as 1,-1,1"
    try:
        sizes = [int(part) for part in (text or "1,-1,1").split(",")]
    except ValueError:
        raise ValueError(f"--mesh {text!r}: {form}") from None
    if len(sizes) != 3 or sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"--mesh {text!r}: {form}")
    named = 1
    for size in sizes:
        named *= size if size > 0 else 1
    if world_size % named or (-1 not in sizes and named != world_size):
        raise ValueError(
            f"--mesh {text} needs {'a multiple of ' if -1 in sizes else ''}{named} ranks, and {world_size} are "
            "started: change --mesh, or the number of ranks that torchrun starts"
        )
    return ParallelDims(*(world_size // named if size == -1 else size for size in sizes))


@dataclass(frozen=True)
class DistributedContext:
    rank: int
    world_size: int
    compute: DeviceInfo
    mesh: DeviceMesh | None  # for fully_shard: dp_shard, or dp_replicate x dp_shard; None in a single process
    tp_mesh: DeviceMesh | None = None  # None without tensor parallelism
    shape: ParallelDims = ParallelDims()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which part of a batch this rank sees: tensor-parallel ranks see the same."""
        return self.rank // self.shape.tp

    @property
    def data_size(self) -> int:
        """Into how many parts a batch is cut."""
        return self.world_size // self.shape.tp

    def sum(self, value: float) -> float:
        """The sum of one number over the parts of a batch, in float64 where the device has it."""
        if self.mesh is None:
            return value
        dtype = torch.float32 if self.compute.device.type == "mps" else torch.float64
        tensor = torch.tensor(value, dtype=dtype, device=self.compute.device)
        dist.all_reduce(tensor)
        return tensor.item() / self.shape.tp  # tensor-parallel ranks hold the same number

    def barrier(self) -> None:
        if self.mesh is not None:
            dist.barrier()


def build_context(shape: ParallelDims, compute: DeviceInfo) -> DistributedContext:
    """The ranks of the process group, which there is already, in a mesh of this shape."""
    sizes = (shape.dp_replicate, shape.dp_shard, shape.tp)
    whole = init_device_mesh(compute.device.type, sizes, mesh_dim_names=DIMENSIONS)
    return DistributedContext(dist.get_rank(), dist.get_world_size(), compute, *fsdp_and_tp_meshes(whole), shape)


def fsdp_and_tp_meshes(whole: DeviceMesh) -> tuple[DeviceMesh, DeviceMesh | None]:
    """Of a mesh of all three dimensions: what `fully_shard` takes, and the tensor-parallel part, if there is one."""
    data = whole["dp_replicate", "dp_shard"] if whole["dp_replicate"].size() > 1 else whole["dp_shard"]
    return data, whole["tp"] if whole["tp"].size() > 1 else None
