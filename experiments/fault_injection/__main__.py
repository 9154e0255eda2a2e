"""Kill ranks at random points of a tiny fine-tune, and compare each run with the undisturbed one.

python -m experiments.fault_injection
python -m experiments.fault_injection --seed 7 --ranks 2 --out here.json
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
    """Cores, system and how busy they are: seconds to resume are no good on a machine that does other work."""
    load = f", load average {os.getloadavg()[1]:.0f}" if hasattr(os, "getloadavg") else ""
    return f"{os.cpu_count()} cores, {platform.system()}{load}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.fault_injection", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--seed", type=int, default=0, help="of the steps and ranks that are struck")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="numbers of ranks to try")
    parser.add_argument("--out", type=Path, default=data_dir() / "results" / "drill.json", help="the record")
    given = parser.parse_args(arguments)
    strikes = {ranks: draw_fault(given.seed, ranks) for ranks in given.ranks}
    record = {"seed": given.seed, "steps": STEPS, "save_every": SAVE_EVERY, "torch": torch.__version__}
    record |= {"machine": machine(), "strikes": []}
    total = sum(1 + len(drawn) for drawn in strikes.values())
    with tempfile.TemporaryDirectory() as name, tqdm(total=total, unit="run") as bar:
        folder = Path(name)
        flags = prepare(folder)
        for ranks, drawn in strikes.items():
            reference = folder / f"undisturbed-{ranks}"
            if failure := fine_tune(reference, flags, ranks, {}):
                sys.exit(f"the undisturbed run on {ranks} ranks failed: {failure}")
            bar.update()
            for number, strike in enumerate(drawn):
                struck = folder / f"strike-{ranks}-{number}"
                failure = fine_tune(struck, flags, ranks, vars(strike))
                record["strikes"].append(evaluate(strike, struck, reference, failure))
                given.out.write_text(json.dumps(record, indent=1) + "\n")  # what is known, if this is interrupted
                bar.write(line(record["strikes"][-1]))
                bar.update()
    print(table(record))
    return int(any(found["faults"] for found in record["strikes"]))


if __name__ == "__main__":
    sys.exit(main())
