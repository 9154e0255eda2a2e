"""One step of a run, in a process of its own: `python -m experiments.gpu.worker NAME FOLDER [--tiny]`."""

import argparse
import importlib
from functools import partial
from pathlib import Path

import torch

from .records import Skip, append
from .steps import STEPS


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.gpu.worker", description=__doc__)
    parser.add_argument("name", choices=[step.name for step in STEPS])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(arguments)
    step = next(step for step in STEPS if step.name == given.name)
    write = partial(append, given.folder, step.name)
    module = importlib.import_module(f".{step.module}", __package__)
    try:
        module.measure(torch.device("cpu" if given.tiny else "cuda"), given.tiny, write, **step.options)
    except Skip as why:
        write({"skipped": str(why)})


if __name__ == "__main__":
    main()
