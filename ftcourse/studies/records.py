"""What all studies share: the file of records, running what it lacks, the command line, and 95 % intervals."""

import argparse
import dataclasses
import json
import math
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import transformers
from tqdm import tqdm

from ftkit.models import data_dir

# 97.5 % quantiles of Student's t for 1, 2, … degrees of freedom, as in any table of them.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
         2.131, 2.120, 2.110, 2.101, 2.093)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A mean and the 95 % interval of Student's t around it."""

    mean: float
    low: float
    high: float

    @property
    def points(self) -> str:
        """As a difference in percentage points."""
        return f"{100 * self.mean:+.1f} ({100 * self.low:+.1f} to {100 * self.high:+.1f})"


def interval(values: Sequence[float]) -> Interval:
    """Raises ValueError for fewer than 2 or more than 20 values."""
    if not 2 <= len(values) <= len(T_975) + 1:
        raise ValueError(f"an interval needs 2 to {len(T_975) + 1} values, and there are {len(values)}")
    mean = statistics.fmean(values)
    half = T_975[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


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
