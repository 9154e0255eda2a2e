"""Run the child-tuning study, or go on with it, and store one raw record a run.

    python -m ftkit.studies.child_tuning
    python -m ftkit.studies.child_tuning --tasks chat-96 --workers 4

A run that is in the output already is not done again. About two hours on two cores.
"""

import argparse
import functools
import os
import sys
from pathlib import Path

import torch

from ftkit.almanac import data_dir
from ftkit.studies.records import do_missing, in_order, write_records
from ftkit.studies.tasks import load_task

from . import plan
from .run import Setting, run


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ftkit.studies.child_tuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    output = data_dir() / "results" / "child_tuning.jsonl"
    parser.add_argument(
        "--tasks", nargs="+", default=list(plan.SEEDS), help=f"default: {' '.join(plan.SEEDS)}"
    )
    parser.add_argument("--seeds", type=int, help="final runs of each method (10 on chat-96, 5 elsewhere)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (one for each core)")
    parser.add_argument("--model", help="a model folder (pocket-base)")
    parser.add_argument("--output", type=Path, default=output, help="raw records (%(default)s)")
    given = parser.parse_args(arguments)
    if (1 if given.seeds is None else given.seeds) < 1 or given.workers < 1:
        parser.error("--seeds and --workers must be at least 1")
    try:
        for task in given.tasks:
            load_task(task, plan.TUNING_SEEDS[0], given.model)  # names and sizes that cannot work fail here
    except (ValueError, OSError) as error:
        parser.error(str(error))
    torch.set_num_threads(1)  # sums in one order: the records repeat
    make = functools.partial(run, base=given.model)
    for task in given.tasks:
        records = do_missing(plan.tuning(task), make, given.output, f"{task}, rates", given.workers)
        settings = plan.final(records, task, given.seeds or plan.SEEDS.get(task, 5))
        records = do_missing(settings, make, given.output, task, given.workers)
        write_records(given.output, in_order(records, Setting))
    print(f"stored in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
