"""Whether this process belongs to the launch that began a run: then it goes on with it, without being told."""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from .device import pick_device
from .mesh import DistributedContext, ParallelDims, build_context
from .rendezvous import RendezvousError, init_process_group_with_retry


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
    """Whether the run in `output` was begun by this launch."""
    file = output / "launch"
    return bool(launch_id()) and file.is_file() and file.read_text() == launch_id()


def run_forked(main: Callable[[DistributedContext], None], ranks: int, mesh: str = "") -> None:
    """Call `main(ranks)` in `ranks` forks of this process, with `mesh` as in `mesh.run`; wait for all of them.

    Call it before anything has started threads or used an accelerator, neither of which survives a fork. When one
    rank fails the others are ended; raises RuntimeError, after the failed rank has printed its traceback, and where
    the system cannot fork.
    """
    if not hasattr(os, "fork"):
        raise RuntimeError("this system cannot fork a process: start the program with torchrun, or use WSL 2")
    launched = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = {
        _fork_rank(main, mesh, {**launched, "RANK": str(rank), "LOCAL_RANK": str(rank)}): rank for rank in range(ranks)
    }
    failed = []
    while started:
        process, status = os.wait()
        rank = started.pop(process, None)
        if rank is not None and status and not failed:
            failed.append(rank)
            for other in started:
                os.kill(other, signal.SIGKILL)
    if failed:
        raise RuntimeError(f"rank {failed[0]} of {ranks} failed: its error stands above")


def _fork_rank(main: Callable, mesh: str, environment: dict[str, str]) -> int:
    process = os.fork()
    if process:
        return process
    os.environ.update(environment)
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # rank 0 keeps the store
    code = 1
    try:
        run_distributed(main, mesh)  # ends the process where there are several
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# torch's own default makes a rank that lost its peers hang for half an hour.
TIMEOUT = timedelta(minutes=10)


def env_rank() -> int:
    """This process's rank as torchrun (or Slurm through it) says, before any process group exists."""
    return int(os.environ.get("RANK", 0))


def env_local_rank() -> int:
    """As `env_rank`, counted on this machine alone."""
    return int(os.environ.get("LOCAL_RANK", 0))


def env_world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def run_distributed(main: Callable[[DistributedContext], None], mesh: str = "", timeout: timedelta = TIMEOUT) -> None:
    """Call `main(ranks)`, inside a process group where torchrun has started several ranks.

    `mesh` as in `mesh_shape`; `timeout` is how long a rank waits for the others, to join and in each collective.
    With several ranks this is the last thing that a process does: it ends here, with exit code 0, or 1 after the
    traceback of what `main` raised. gloo's threads can outlive the process group and abort an interpreter that shuts
    down in the usual way ("terminate called without an active exception"), and those that write a checkpoint can make
    one that has failed wait for the others.
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
    except BaseException as error:
        traceback.print_exception(error)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
