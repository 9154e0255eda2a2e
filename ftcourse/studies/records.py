"""What all studies share: the file of records, running what it lacks, the command line."""

import argparse
import dataclasses
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

import torch
import transformers
from tqdm import tqdm

from ftkit.models import data_dir

Trial = TypeVar("Trial")  # a frozen dataclass; each study has its own


def study_parser(name: str, doc: str, *options: str) -> argparse.ArgumentParser:
    """Return the parser of `python -m ftcourse.studies.NAME`: `--output` and of "workers", "model" the given ones."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=f"python -m ftcourse.studies.{name}", description=doc, formatter_class=form)
    if "workers" in options:
        parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (one for each core)")
    if "model" in options:
        parser.add_argument("--model", default="", help="a model folder or name (pocket-base)")
    output = data_dir() / "results" / f"{name}.jsonl"
    parser.add_argument("--output", type=Path, default=output, help="raw records (%(default)s)")
    return parser


def make_repeatable() -> None:
    """Use one thread, so that sums have one order and records repeat; hide the progress bars of loading."""
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)


def read_records(path: Path) -> list[dict]:
    """The complete lines of a file of records; the last line may have been cut off when a run was killed."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def write_records(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def trial_of(record: dict, kind: type[Trial]) -> Trial:
    """Return the trial that the record's run was made with."""
    return kind(**{field.name: record[field.name] for field in dataclasses.fields(kind)})


def sort_records(records: list[dict], kind: type[Trial]) -> list[dict]:
    """The records by their trials, an order that does not depend on which run ended first."""
    return sorted(records, key=lambda record: dataclasses.astuple(trial_of(record, kind)))


def run_missing(
    trials: list[Trial], run: Callable[[Trial], dict], path: Path, label: str, workers: int = 1
) -> list[dict]:
    """Run the trials that the file has no record of, append theirs, and return all the file's records.

    All trials are of one kind, whose fields `run` puts into its record. With one worker the runs are made in this
    process, in their order; with more, in processes of one thread each.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    records = read_records(path)
    write_records(path, records)  # without a line that was cut off
    done = {trial_of(record, type(trials[0])) for record in records}
    todo = [trial for trial in trials if trial not in done]
    with (
        path.open("a", encoding="utf-8") as file,
        tqdm(total=len(trials), initial=len(trials) - len(todo), desc=label, unit="run") as bar,
    ):
        for record in _results(todo, run, workers):
            records.append(record)
            file.write(json.dumps(record) + "\n")
            file.flush()
            bar.update()
    return records


def _results(todo: list[Trial], run: Callable[[Trial], dict], workers: int) -> Iterator[dict]:
    if workers == 1:
        yield from map(run, todo)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for future in as_completed([pool.submit(run, trial) for trial in todo]):
            yield future.result()
