"""Whether this process belongs to the launch that began a run: then it goes on with it, without being told."""

import os
from pathlib import Path

import psutil


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


def belongs(output: Path) -> bool:
    """Whether the run in `output` was begun by this launch."""
    file = output / "launch"
    return bool(launch_id()) and file.is_file() and file.read_text() == launch_id()
