"""The mesh of a run's ranks: which dimensions it has, and which place in it this process has.

One program serves one process and many: without torchrun there is one rank and no process group. Several ranks form
a mesh of three dimensions, whose product is the number of ranks:

- `dp_replicate`: replicas of the model, each with other examples (HSDP: for instance one replica per machine),
- `dp_shard`: ranks that shard the parameters of a replica and see other examples (FSDP),
- `tp`: ranks that split each matrix and see the same examples (tensor parallelism: neighbouring ranks).
"""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from .device import DeviceInfo

MESH_DIM_NAMES = ("dp_replicate", "dp_shard", "tp")


@dataclass(frozen=True)
class ParallelDims:
    """Sizes of the mesh's dimensions."""

    dp_replicate: int = 1
    dp_shard: int = 1
    tp: int = 1

    @classmethod
    def parse(cls, text: str, world_size: int) -> "ParallelDims":
        """Read `dp_replicate,dp_shard,tp`, where one -1 stands for the remaining ranks.

        Empty text means 1,-1,1: FSDP over all ranks. Raises ValueError when the text is not three such numbers or
        their product is not `world_size`.
        """
        form = "--mesh takes dp_replicate,dp_shard,tp, three whole numbers of which one may be -1, such as 1,-1,1"
        try:
            sizes = [int(part) for part in (text or "1,-1,1").split(",")]
        except ValueError:
            raise ValueError(f"--mesh {text!r}: {form}") from None
        if len(sizes) != 3 or sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise ValueError(f"--mesh {text!r}: {form}")
        given = math.prod(size for size in sizes if size > 0)
        if world_size % given or (-1 not in sizes and given != world_size):
            raise ValueError(
                f"--mesh {text} needs {'a multiple of ' if -1 in sizes else ''}{given} ranks, and {world_size} are "
                "started: change --mesh, or the number of ranks that torchrun starts"
            )
        return cls(*(world_size // given if size == -1 else size for size in sizes))

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.dp_replicate, self.dp_shard, self.tp

    @property
    def world_size(self) -> int:
        return math.prod(self.sizes)

    def build_mesh(self, device_type: str) -> DeviceMesh:
        """A mesh of these dimensions over the process group, which must exist."""
        return init_device_mesh(device_type, self.sizes, mesh_dim_names=MESH_DIM_NAMES)

    def __str__(self) -> str:
        return ",".join(map(str, self.sizes))


@dataclass(frozen=True)
class DistributedContext:
    """This process's rank, device and meshes."""

    rank: int
    world_size: int
    device_info: DeviceInfo
    mesh: DeviceMesh | None  # for fully_shard: dp_shard, or dp_replicate x dp_shard; None in a single process
    tp_mesh: DeviceMesh | None = None  # None without tensor parallelism
    parallel_dims: ParallelDims = ParallelDims()

    @property
    def device(self) -> torch.device:
        return self.device_info.device

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there is a process group."""
        return self.mesh is not None

    @property
    def dp_rank(self) -> int:
        """Which part of a batch this rank gets; tensor-parallel ranks get the same part."""
        return self.rank // self.parallel_dims.tp

    @property
    def dp_size(self) -> int:
        """The number of parts that a batch is split into."""
        return self.world_size // self.parallel_dims.tp

    def sum(self, value: float) -> float:
        """The sum of a number over the data-parallel ranks, in float64 where the device has it."""
        if not self.is_distributed:
            return value
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        tensor = torch.tensor(value, dtype=dtype, device=self.device)
        dist.all_reduce(tensor)
        return tensor.item() / self.parallel_dims.tp  # tensor-parallel ranks hold the same number

    def barrier(self) -> None:
        if self.is_distributed:
            dist.barrier()


def build_context(parallel_dims: ParallelDims, device_info: DeviceInfo) -> DistributedContext:
    """The context of this rank in a mesh over the process group, which must exist."""
    meshes = fsdp_and_tp_meshes(parallel_dims.build_mesh(device_info.device.type))
    return DistributedContext(dist.get_rank(), dist.get_world_size(), device_info, *meshes, parallel_dims)


def fsdp_and_tp_meshes(mesh: DeviceMesh) -> tuple[DeviceMesh, DeviceMesh | None]:
    """Split a mesh of all three dimensions into what `fully_shard` takes and the tensor-parallel mesh, if any."""
    data = mesh["dp_replicate", "dp_shard"] if mesh["dp_replicate"].size() > 1 else mesh["dp_shard"]
    return data, mesh["tp"] if mesh["tp"].size() > 1 else None
