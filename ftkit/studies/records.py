"""A study's raw records: one JSON object a line, one line a run. A study that was cut off goes on where it was."""

import dataclasses
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

Setting = TypeVar("Setting")  # a frozen dataclass, of a kind of its own for each study


def read_records(path: Path) -> list[dict]:
    """The complete lines of a file of records; the last line may have been cut off when a run was killed."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def write_records(path: Path, records: list[dict]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def setting_of(record: dict, kind: type[Setting]) -> Setting:
    """The setting, a dataclass, that the record's run was made with."""
    return kind(**{field.name: record[field.name] for field in dataclasses.fields(kind)})


def in_order(records: list[dict], kind: type[Setting]) -> list[dict]:
    """The records by their settings, an order that does not depend on which run ended first."""
    return sorted(records, key=lambda record: dataclasses.astuple(setting_of(record, kind)))


def do_missing(
    settings: list[Setting], run: Callable[[Setting], dict], path: Path, label: str, workers: int = 1
) -> list[dict]:
    """Run the settings that the file has no record of, append theirs, and return all the file's records.

    All settings are of one kind, whose fields `run` puts into its record. With one worker the runs are made in this
    process, in their order; with more, in processes of one thread each.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    records = read_records(path)
    write_records(path, records)  # without a line that was cut off
    done = {setting_of(record, type(settings[0])) for record in records}
    todo = [setting for setting in settings if setting not in done]
    with (
        path.open("a", encoding="utf-8") as file,
        tqdm(total=len(settings), initial=len(settings) - len(todo), desc=label, unit="run") as bar,
    ):
        for record in _results(todo, run, workers):
            records.append(record)
            file.write(json.dumps(record) + "\n")
            file.flush()
            bar.update()
    return records


def _results(todo: list[Setting], run: Callable[[Setting], dict], workers: int) -> Iterator[dict]:
    if workers == 1:
        yield from map(run, todo)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for future in as_completed([pool.submit(run, setting) for setting in todo]):
            yield future.result()
