"""The records of a run: one JSON object a line, written as soon as it is known, so that a cut-off run still counts."""

import json
from collections.abc import Callable
from pathlib import Path

FILE = "records.jsonl"
Write = Callable[[dict], None]


class Skip(Exception):
    """A step cannot be measured here; the message says why, in a sentence."""


def append(folder: Path, step: str, record: dict) -> None:
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **record}) + "\n")


def read(folder: Path) -> list[dict]:
    """All records of a run; a crash can leave half a line at the end, which is left out."""
    lines = (folder / FILE).read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]
