"""The ranks of a run: start them, know which one this is and what it shares with whom, end them cleanly.

One program serves one process and many: without torchrun there is one rank and no process group. With several,
the ranks form a mesh of three dimensions, whose product is the number of ranks:

- `dp_replicate`: groups that hold the same shards and see other rows (HSDP: for instance one group a machine),
- `dp_shard`: ranks that share the parameters among them and see other rows (FSDP),
- `tp`: ranks that share each matrix and see the same rows (tensor parallelism: the ranks nearest to each other).
"""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ftkit.device import Device, pick_device
from ftkit.distributed.rendezvous import RendezvousError, join

# torch's own default makes a rank that lost its peers hang for half an hour.
TIMEOUT = timedelta(minutes=10)
DIMENSIONS = ("dp_replicate", "dp_shard", "tp")


@dataclass(frozen=True)
class MeshShape:
    dp_replicate: int = 1
    dp_shard: int = 1
    tp: int = 1

    def __str__(self) -> str:
        return f"{self.dp_replicate},{self.dp_shard},{self.tp}"


def mesh_shape(text: str, world_size: int) -> MeshShape:
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
    return MeshShape(*(world_size // named if size == -1 else size for size in sizes))


@dataclass(frozen=True)
class Ranks:
    rank: int
    world_size: int
    compute: Device
    mesh: DeviceMesh | None  # for fully_shard: dp_shard, or dp_replicate x dp_shard; None in a single process
    tp_mesh: DeviceMesh | None = None  # None without tensor parallelism
    shape: MeshShape = MeshShape()

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


def launched_rank() -> int:
    """This process's rank as torchrun (or Slurm through it) says, before any process group exists."""
    return int(os.environ.get("RANK", 0))


def launched_world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def arrange(shape: MeshShape, compute: Device) -> Ranks:
    """The ranks of the process group, which there is already, in a mesh of this shape."""
    sizes = (shape.dp_replicate, shape.dp_shard, shape.tp)
    whole = init_device_mesh(compute.device.type, sizes, mesh_dim_names=DIMENSIONS)
    return Ranks(dist.get_rank(), dist.get_world_size(), compute, *parts_of(whole), shape)


def parts_of(whole: DeviceMesh) -> tuple[DeviceMesh, DeviceMesh | None]:
    """Of a mesh of all three dimensions: what `fully_shard` takes, and the tensor-parallel part, if there is one."""
    data = whole["dp_replicate", "dp_shard"] if whole["dp_replicate"].size() > 1 else whole["dp_shard"]
    return data, whole["tp"] if whole["tp"].size() > 1 else None


def run(main: Callable[[Ranks], None], mesh: str = "", timeout: timedelta = TIMEOUT) -> None:
    """Call `main(ranks)`, inside a process group where torchrun has started several ranks.

    `mesh` as in `mesh_shape`; `timeout` is how long a rank waits for the others, to join and in each collective.
    With several ranks this is the last thing that a process does: it ends here, with exit code 0, or 1 after the
    traceback of what `main` raised. gloo's threads can outlive the process group and abort an interpreter that shuts
    down in the usual way ("terminate called without an active exception"), and those that write a checkpoint can make
    one that has failed wait for the others.
    """
    world_size = launched_world_size()
    shape = mesh_shape(mesh, world_size)
    compute = pick_device(int(os.environ.get("LOCAL_RANK", 0)), world_size)
    if compute.device.type == "cuda":
        torch.cuda.set_device(compute.device)
    if world_size == 1:
        main(Ranks(0, 1, compute, None))
        return
    try:
        join(compute.backend, timeout)
    except RendezvousError as error:
        raise SystemExit(f"error: {error}") from None
    code = 0
    try:
        main(arrange(shape, compute))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException as error:
        traceback.print_exception(error)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
