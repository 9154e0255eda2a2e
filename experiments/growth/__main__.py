"""Measure how seconds and memory of `ftkit finetune` grow, one quantity at a time.

    python -m experiments.growth
    python -m experiments.growth --studies rows "rows, again"

Appends each finished run to data/results/growth.jsonl and skips those that are stored. An hour on two quiet cores.
"""

import argparse
import datetime
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from ftkit.models import data_dir

from .report import markdown
from .trial import Trial, run

ROWS, LENGTHS, RANKS, WIDTHS = (
    (1_000, 10_000, 100_000, 1_000_000),
    (128, 256, 512, 1024),
    (1, 2, 4),
    (128, 256, 512, 1024),
)
LONG = {"rows": 64, "words": (600, 700)}  # of more than 1,024 tokens
SMALL = {"batch_size": 4, "micro_batch_size": 4, "max_steps": 6, "estimate_memory": False}  # the same in all of them
TRIALS = [
    *(Trial("rows", n, rows=n) for n in ROWS),
    *(Trial("rows, again", n, rows=n, again=True) for n in ROWS[2:]),
    *(
        Trial("length", n, **LONG, flags={**SMALL, "max_length": n, "allow": "answer-cut-off,stop-not-in-labels"})
        for n in LENGTHS
    ),
    *(Trial("ranks", n, ranks=n, flags={"max_steps": 6, "estimate_memory": False}) for n in RANKS),
    *(Trial("width", n, hidden=n, flags=SMALL) for n in WIDTHS),
]


def stored(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def machine() -> dict:
    """Where and when: the load of each run says whether others used the machine, too."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "torch": torch.__version__,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    studies = list(dict.fromkeys(trial.study for trial in TRIALS))
    parser.add_argument("--studies", nargs="+", choices=studies, default=studies, help="default: all of them")
    parser.add_argument("--most", type=int, default=max(ROWS), help="rows: leave larger trials out")
    parser.add_argument("--out", type=Path, default=data_dir() / "results" / "growth.jsonl", help="the record")
    given = parser.parse_args(arguments)
    done = {(record["study"], record["x"]) for record in stored(given.out)}
    for trial in TRIALS:
        if trial.study not in given.studies or trial.key in done or trial.rows > given.most:
            continue
        print(f"{trial.study}: {trial.x:,} …", file=sys.stderr, flush=True)
        record = {**asdict(trial), **machine(), **run(trial)}
        with given.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    print(markdown(stored(given.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
