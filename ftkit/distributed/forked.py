"""Ranks as forks of one process that has imported everything: a quick start for lessons and tests on one machine.

torchrun starts an interpreter for each rank, and each imports torch and transformers: ten seconds of a core every time.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable

from ftkit.distributed import mesh as ranks_of
from ftkit.distributed.launch import free_port


def run_forked(main: Callable[[ranks_of.Ranks], None], ranks: int, mesh: str = "") -> None:
    """Call `main(ranks)` in `ranks` forks of this process, with `mesh` as in `mesh.run`; wait for all of them.

    Call it before anything has started threads or used an accelerator, neither of which survives a fork. When one
    rank fails the others are ended; raises RuntimeError, after the failed rank has printed its traceback, and where
    the system cannot fork.
    """
    if not hasattr(os, "fork"):
        raise RuntimeError("this system cannot fork a process: start the program with torchrun, or use WSL 2")
    launched = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = {
        _start(main, mesh, {**launched, "RANK": str(rank), "LOCAL_RANK": str(rank)}): rank
        for rank in range(ranks)
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


def _start(main: Callable, mesh: str, environment: dict[str, str]) -> int:
    process = os.fork()
    if process:
        return process
    os.environ.update(environment)
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # rank 0 keeps the store
    code = 1
    try:
        ranks_of.run(main, mesh)  # ends the process where there are several
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)
