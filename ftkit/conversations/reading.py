"""Read conversations from files of JSON lines.

A line holds `{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}`, the
format of the OpenAI, TRL and Hugging Face chat data sets. Other keys are kept and ignored.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.models import data_dir

from .errors import ConversationError
from .validation import EXAMPLE, find_problem

if TYPE_CHECKING:
    import datasets


SHOWN_PROBLEMS = 5


def read_conversations(path: str | Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file of conversations; blank lines are skipped.

    Raises FileNotFoundError, and ConversationError that names up to five invalid lines.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no data file at {path}: give the path of a .jsonl file of conversations")
    rows, problems = [], []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{path}:{number}: not JSON ({error.msg} at column {error.colno}). Write {EXAMPLE}")
            continue
        if problem := find_problem(row):
            problems.append(f"{path}:{number}: {problem}")
        rows.append(row)
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        tail = [f"… and {more} more bad lines"] if more > 0 else []
        raise ConversationError("\n".join(problems[:SHOWN_PROBLEMS] + tail))
    if not rows:
        raise ConversationError(f"{path}: no conversations in it. Write one a line, such as {EXAMPLE}")
    return rows


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise ConversationError(f"{path}: not UTF-8 text ({error.reason}). Save the file as UTF-8") from None


def find_chat(name: str | Path | None = None) -> dict[str, Path]:
    """The JSON-lines files that `load_chat` reads, by split.

    `name` is a .jsonl file (the split "train") or a folder with one per split; by default the environment variable
    FTKIT_DATA, else the almanac's chats. Raises FileNotFoundError where there is none.
    """
    source = Path(name or os.environ.get("FTKIT_DATA") or data_dir() / "chat")
    if not source.is_dir():
        return {"train": source}
    if not (files := {path.stem: path for path in sorted(source.glob("*.jsonl"))}):
        raise FileNotFoundError(f"{source} holds no .jsonl file of conversations")
    return files


def load_chat(name: str | Path | None = None) -> "datasets.DatasetDict":
    """Load conversations (`messages`); `name` as in `find_chat`.

    The almanac's splits are train, test (held-out questions) and heldout_domains. Raises ConversationError
    or FileNotFoundError for what is not chat data.
    """
    from datasets import Dataset, DatasetDict  # takes a second to import

    return DatasetDict({k: Dataset.from_list(read_conversations(path)) for k, path in find_chat(name).items()})
