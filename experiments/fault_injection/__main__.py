"""Kill ranks at random points of a tiny fine-tune, and compare each run with the undisturbed one.

    python -m experiments.fault_injection
    python -m experiments.fault_injection --seed 7 --ranks 2 --out here.json

Writes data/results/drill.json, one entry per fault, after every run. Takes minutes. The exit status
is 1 if a run did not recover.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

from ftkit.models import data_dir

from .faults import SAVE_EVERY, STEPS, draw_fault, evaluate, fine_tune, line, prepare, table


def machine() -> str:
    """Return cores, system and load average, because seconds to resume mean little on a busy machine."""
    load = f", load average {os.getloadavg()[1]:.0f}" if hasattr(os, "getloadavg") else ""
    return f"{os.cpu_count()} cores, {platform.system()}{load}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.fault_injection",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="of the steps and ranks that fail")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="numbers of ranks to try")
    parser.add_argument("--out", type=Path, default=data_dir() / "results" / "drill.json", help="the record")
    given = parser.parse_args(arguments)
    drawn_faults = {ranks: draw_fault(given.seed, ranks) for ranks in given.ranks}
    record = {"seed": given.seed, "steps": STEPS, "save_every": SAVE_EVERY, "torch": torch.__version__}
    record |= {"machine": machine(), "strikes": []}
    total = sum(1 + len(drawn) for drawn in drawn_faults.values())
    with tempfile.TemporaryDirectory() as name, tqdm(total=total, unit="run") as bar:
        folder = Path(name)
        flags = prepare(folder)
        for ranks, drawn in drawn_faults.items():
            reference = folder / f"undisturbed-{ranks}"
            if failure := fine_tune(reference, flags, ranks, {}):
                sys.exit(f"the undisturbed run on {ranks} ranks failed: {failure}")
            bar.update()
            for number, fault in enumerate(drawn):
                faulty_run = folder / f"fault-{ranks}-{number}"
                failure = fine_tune(faulty_run, flags, ranks, vars(fault))
                record["strikes"].append(evaluate(fault, faulty_run, reference, failure))
                given.out.write_text(json.dumps(record, indent=1) + "\n")  # what is known, if this is interrupted
                bar.write(line(record["strikes"][-1]))
                bar.update()
    print(table(record))
    return int(any(found["faults"] for found in record["strikes"]))


if __name__ == "__main__":
    sys.exit(main())
