"""The steps of a run in their order, and how one is run: in a process of its own that is ended at its time limit."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .records import append, read

TAIL = 12  # lines of a failed step's output that its record keeps
LOG = "log.txt"
SLACK = 10  # a CPU that others use, too, may take so many times a step's limit


@dataclass(frozen=True)
class Step:
    name: str
    title: str
    limit: float  # seconds that it may take
    module: str  # of this package, whose `measure(device, tiny, write, **options)` does it
    options: dict = field(default_factory=dict)
    on_cpu: bool = True  # whether it has a counterpart of small shapes on a CPU


def _peer(contender: str, label: str, on_cpu: bool) -> Step:
    return Step(f"peer {label}", f"Side by side: {label}", 60, "peers", {"contender": contender}, on_cpu)


CONTENDERS = ("ftkit", "TRL, nothing recomputed", "TRL", "TRL with Liger")
# The most important first: the run may end before the last ones. There and back, so that a device that gets warm slows
# all contenders.
STEPS = [
    Step("environment", "Device and versions", 40, "environment"),
    Step("ceilings", "What the device can do at most", 40, "ceilings"),
    Step("masks", "The kernel's masks and the CPU's", 60, "masks"),
    Step("optimizer", "An optimizer step at a billion parameters", 90, "optimizer_step"),
    Step("memory", "Estimated and measured memory", 90, "memory_plans"),
    Step("1B", "Full fine-tune of the Llama-3.2-1B shape", 60, "fine_tune", {"shape": "Llama-3.2-1B"}),
    Step(
        "1B compiled",
        "The same with --compile",
        90,
        "fine_tune",
        {"shape": "Llama-3.2-1B", "compiled": True},
        on_cpu=False,
    ),
    Step("8B", "Full fine-tune of the Llama-3-8B shape", 75, "fine_tune", {"shape": "Llama-3-8B"}),
    Step(
        "8B compiled",
        "The same with --compile",
        100,
        "fine_tune",
        {"shape": "Llama-3-8B", "compiled": True},
        on_cpu=False,
    ),
    *(_peer(name, name, on_cpu=name in ("ftkit", "TRL")) for name in CONTENDERS),
    *(_peer(name, f"{name}, again", on_cpu=False) for name in reversed(CONTENDERS[:2])),
]


def run_step(step: Step, folder: Path, tiny: bool, left: float) -> None:
    """Run a step for at most its limit and the `left` seconds of the whole run, and record how it ended."""
    limit = min(step.limit * (SLACK if tiny else 1), left)
    if tiny and not step.on_cpu:
        append(folder, step.name, {"skipped": "needs CUDA", "seconds": 0.0})
        return
    if limit <= 0:
        append(folder, step.name, {"status": "not started", "why": "the time of the run was up", "seconds": 0.0})
        return
    command = [sys.executable, "-m", f"{__package__}.worker", step.name, str(folder), *["--tiny"] * tiny]
    start = time.perf_counter()
    with (folder / LOG).open("a+", encoding="utf-8", errors="replace") as log:
        log.write(f"== {step.name}\n")
        log.flush()
        begun = log.tell()
        process = subprocess.Popen(
            command, env=_environment(tiny), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)  # also where this program is interrupted
        log.seek(begun)
        said = log.read().splitlines()[-TAIL:]
    ended = {"seconds": round(time.perf_counter() - start, 2)}
    if code is None:
        ended |= {"status": "out of time", "why": f"ended after {limit:.0f} seconds"}
    elif code:
        ended |= {"status": "failed", "why": "\n".join(said)}
    else:
        ended |= {"status": "done"}
    append(folder, step.name, ended)


def statuses(folder: Path) -> dict[str, str]:
    """How each step ended, of those that did."""
    return {record["step"]: record["status"] for record in read(folder) if "status" in record}


def _environment(tiny: bool) -> dict[str, str]:
    # Nothing is fetched; and memory that was freed in small pieces can be had in one.
    own = {"HF_HUB_OFFLINE": "1", "PYTORCH_ALLOC_CONF": "expandable_segments:True", "PYTHONUNBUFFERED": "1"}
    # One device: transformers would share a batch out over all that it sees.
    seen = "" if tiny else os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return {**os.environ, **own, "CUDA_VISIBLE_DEVICES": seen}


def _end(process: subprocess.Popen) -> None:
    """Kill a step's process and all that it started, such as a compiler's."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
