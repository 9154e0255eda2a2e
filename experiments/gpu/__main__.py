"""Measure all that needs a GPU, and write a report: `make gpu`, at most eight minutes on one H100 or H200.

    python -m experiments.gpu
    python -m experiments.gpu --tiny
    python -m experiments.gpu --report runs/gpu-20260101-120000

Each step runs in a process of its own with a time limit, and its results are written as they come to
OUTPUT/records.jsonl. OUTPUT/report.md is made from them after every step, so a run that is cut off still counts.
Nothing is downloaded. --tiny tries the program out with small shapes on a CPU: two minutes on two quiet cores.
"""

import argparse
import datetime
import math
import signal
import sys
import time
from pathlib import Path

import torch

from .records import read
from .report import markdown
from .steps import STEPS, run_step, statuses

SECONDS = 8 * 60
NO_CUDA = (
    "error: this torch sees no CUDA device, so there is nothing to measure: run it on a machine with an NVIDIA GPU. "
    "`python -m experiments.gpu --tiny` tries the program out on a CPU"
)


def write_report(folder: Path) -> str:
    """Make OUTPUT/report.md from the records; returns its text."""
    text = markdown(read(folder))
    (folder / "report.md").write_text(text, encoding="utf-8")
    return text


def measure(folder: Path, names: list[str], tiny: bool, seconds: float) -> bool:
    """Run the named steps; returns whether each of them ended as it should."""
    folder.mkdir(parents=True)
    start = time.monotonic()
    for step in STEPS:
        if step.name in names:
            print(f"{step.title} …", file=sys.stderr, flush=True)
            run_step(step, folder, tiny, seconds - (time.monotonic() - start))
            write_report(folder)
    return all(status == "done" for status in statuses(folder).values())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [step.name for step in STEPS]
    parser.add_argument("--tiny", action="store_true", help="small shapes, on a CPU, to try the program out")
    parser.add_argument("--steps", nargs="+", choices=names, default=names, help="default: all of them")
    parser.add_argument("--output", type=Path, help="a new folder (default: runs/gpu-DATE-TIME)")
    parser.add_argument("--seconds", type=float, help=f"for the whole run ({SECONDS}; with --tiny, no limit)")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="only make the report of a stored run again")
    given = parser.parse_args(arguments)
    if given.report:
        print(write_report(given.report))
        return 0
    if not given.tiny and not torch.cuda.is_available():
        print(NO_CUDA, file=sys.stderr)
        return 2
    folder = given.output or Path("runs") / f"gpu-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    if folder.exists():
        parser.error(f"{folder} exists: give another --output")
    whole = measure(folder, given.steps, given.tiny, given.seconds or (math.inf if given.tiny else SECONDS))
    print((folder / "report.md").read_text(encoding="utf-8"))
    print(f"records and report: {folder}")
    return 0 if whole else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the step that is running is ended, too
    sys.exit(main())
