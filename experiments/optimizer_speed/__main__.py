"""Time an optimizer step of child-tuning against torch's AdamW and the original implementation.

    python -m experiments.optimizer_speed
    python -m experiments.optimizer_speed --elements 1000000 --out here.json

Writes data/results/bench_<device>.json. Takes minutes; run it on an idle machine, because the record
contains the load average.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path

import torch

from ftkit.models import data_dir

from .optimizers import NAMES, make
from .report import text
from .timing import copy_seconds, mask_seconds, peak_bytes, pocket_step, rounds, tensors

ELEMENTS = {"cpu": 10_000_000, "cuda": 1_000_000_000}
BUSY = 1.5  # load average above which a warning is printed


def measure(device: torch.device, elements: int, count: int, repeats: int, reserve_p: float, fisher_p: float) -> dict:
    """Return the raw record of one run: times in seconds, sizes in bytes."""
    before = _load()
    memory = {name: _peak(name, elements, count, reserve_p, fisher_p, device) for name in NAMES}
    copies = copy_seconds(elements, repeats, device)
    weights, gradients = (tensors(elements, count, device, seed) for seed in (0, 1))
    candidates = [make(name, weights, gradients, reserve_p, fisher_p) for name in NAMES]
    times = rounds(candidates, repeats, device)
    bounds = {candidate.name: candidate.bandwidth_bound for candidate in candidates}
    del candidates, weights, gradients
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": device.type,
        "machine": processor_name(device),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": _versions(),
        "elements": elements,
        "tensors": count,
        "repeats": repeats,
        "reserve_p": reserve_p,
        "fisher_p": fisher_p,
        "copy_seconds": copies,
        "mask_seconds": mask_seconds(elements, reserve_p, repeats) if device.type == "cpu" else None,
        "results": {n: {"seconds": times[n], "floor_bytes": bounds[n], **memory[n]} for n in NAMES},
        "pocket": pocket_step(repeats, reserve_p, fisher_p, device),
        "load": [before, _load()],
    }


def _peak(name: str, elements: int, count: int, reserve_p: float, fisher_p: float, device: torch.device) -> dict:
    arguments = (name, elements, count, reserve_p, fisher_p, str(device))
    if device.type == "cuda":
        return peak_bytes(*arguments)
    # glibc raises this limit as it goes, and then keeps what was freed: it would look like memory in use.
    variable = "MALLOC_MMAP_THRESHOLD_"
    before = os.environ.get(variable)
    os.environ[variable] = str(1 << 17)
    try:
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=fresh) as process:
            return process.submit(peak_bytes, *arguments).result()
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def _load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def processor_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    listed = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", listed.read_text()) if listed.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _versions() -> dict[str, str | None]:
    found = {"python": platform.python_version()}
    for name in ("torch", "numpy", "triton"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def main(arguments: list[str] | None = None) -> int:
    here = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(
        prog="python -m experiments.optimizer_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default=here, choices=ELEMENTS, help=f"default: {here}")
    parser.add_argument("--elements", type=int, help="parameters (10 million on a CPU, a billion on CUDA)")
    parser.add_argument("--tensors", type=int, default=10, help="that they are divided among (10)")
    parser.add_argument("--repeats", type=int, default=15, help="rounds that count (15)")
    parser.add_argument("--reserve-p", type=float, default=0.3, help="p of task-free child-tuning (0.3)")
    parser.add_argument("--fisher-p", type=float, default=0.1, help="share of the task-dependent child (0.1)")
    parser.add_argument("--out", type=Path, help="where to store it (data/results/bench_<device>.json)")
    given = parser.parse_args(arguments)
    elements = given.elements or ELEMENTS[given.device]
    if not 1 <= given.tensors <= elements or given.repeats < 1:
        parser.error("--tensors must be between 1 and --elements, and --repeats at least 1")
    if not (0 < given.reserve_p <= 1 and 0 < given.fisher_p <= 1):
        parser.error("--reserve-p and --fisher-p must be in (0, 1]")
    record = measure(
        torch.device(given.device), elements, given.tensors, given.repeats, given.reserve_p, given.fisher_p
    )
    out = given.out or data_dir() / "results" / f"bench_{given.device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(text(record))
    print(f"stored in {out}")
    if max(record["load"]) > BUSY:
        print("The machine was busy (see the load): other programs are in these times.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
