"""Start ranks: under torchrun, or as forks of this process; and recognise a restart of the same launch."""

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException, start_processes

from .device import pick_device
from .mesh import DistributedContext, ParallelDims, build_context
from .rendezvous import RendezvousError, init_process_group_with_retry

# torch's own default leaves a rank that lost its peers waiting for half an hour.
TIMEOUT = timedelta(minutes=10)


class Refusal(Exception):
    """Why a run cannot start or go on, in a sentence for its user, who needs no traceback."""


@contextmanager
def refused_by_all(context: DistributedContext) -> Iterator[None]:
    """Raise the first ValueError or OSError of any rank as Refusal on all of them. A collective."""
    refused = None
    try:
        yield
    except (ValueError, OSError) as error:
        refused = str(error)
    answers = [refused] * context.world_size
    if context.is_distributed:
        dist.all_gather_object(answers, refused)
    if said := [answer for answer in answers if answer is not None]:
        raise Refusal(said[0])


def print_refusal(error: Exception) -> None:
    """Print `error: ...` on rank 0; on another rank only if that one has not ended the launch meanwhile."""
    if env_rank():
        time.sleep(3)  # torchrun ends every rank when the first one fails: let rank 0 speak
    print(f"error: {error}" + (f" (rank {env_rank()})" if env_rank() else ""), file=sys.stderr, flush=True)


def run_distributed(main: Callable[[DistributedContext], None], mesh: str = "", timeout: timedelta = TIMEOUT) -> None:
    """Call `main(context)`, inside a process group where torchrun has started several ranks.

    With several ranks the process ends here: with exit code 0, 2 after printing a `Refusal`, or 1 after the traceback
    of what else `main` raised. The interpreter's own shutdown is skipped because gloo's threads can outlive the process
    group and abort it ("terminate called without an active exception"), and threads that write a checkpoint can make a
    failed rank wait.

    Args:
        mesh: as in `ParallelDims.parse`.
        timeout: how long a rank waits for the others, to join and in each collective.
    """
    world_size = env_world_size()
    parallel_dims = ParallelDims.parse(mesh, world_size)
    device_info = pick_device(env_local_rank(), world_size)
    if device_info.device.type == "cuda":
        torch.cuda.set_device(device_info.device)
    if world_size == 1:
        main(DistributedContext(0, 1, device_info, None))
        return
    try:
        init_process_group_with_retry(device_info.backend, timeout)
    except RendezvousError as error:
        raise SystemExit(f"error: {error}") from None
    code = 0
    try:
        main(build_context(parallel_dims, device_info))
        dist.barrier()
        dist.destroy_process_group()
    except Refusal as error:
        print_refusal(error)
        code = 2
    except BaseException as error:
        traceback.print_exception(error)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_forked(main: Callable[[DistributedContext], None], ranks: int, mesh: str = "") -> None:
    """Call `main(context)` in `ranks` forks of this process, as `run_distributed` does, and wait for all of them.

    Call it before anything has started threads or used an accelerator: neither survives a fork. When a rank fails,
    it prints its traceback and the others are killed. Raises RuntimeError then, and where the system cannot fork.
    """
    if not hasattr(os, "fork"):
        raise RuntimeError("this system cannot fork a process: start the program with torchrun, or use WSL 2")
    environment = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    forks = start_processes(_run_rank, (main, mesh, environment), ranks, join=False, start_method="fork")
    try:
        while not forks.join(grace_period=0):
            pass
    except ProcessExitedException as error:
        raise RuntimeError(f"rank {error.error_index} of {ranks} failed: its error stands above") from None


def _run_rank(rank: int, main: Callable, mesh: str, environment: dict[str, str]) -> None:
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # rank 0 keeps the store
    try:
        run_distributed(main, mesh)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def env_rank() -> int:
    """This process's rank as torchrun (or Slurm) sets it, before any process group exists."""
    return int(os.environ.get("RANK", 0))


def env_local_rank() -> int:
    """As `env_rank`, counted on this machine alone."""
    return int(os.environ.get("LOCAL_RANK", 0))


def env_world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch_id() -> str:
    """A name that torchrun's restarts share and other launches do not; empty without torchrun.

    With `--rdzv-id` it is that name, so a job that is started again under its own id (as Slurm does after a
    preemption) is the same launch. Without one it is the torchrun process, which only serves a single machine.
    """
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if run and run != "none":
        return f"rdzv-id {run}"
    alone = os.environ.get("GROUP_WORLD_SIZE") == "1"
    return f"torchrun since {psutil.Process(os.getppid()).create_time()}" if run and alone else ""


def is_same_launch(output: Path) -> bool:
    """Whether the run in `output` was started by this launch."""
    file = output / "launch"
    return bool(launch_id()) and file.is_file() and file.read_text() == launch_id()
