"""Read conversations from the files people have: their formats are recognised, converted and validated.

A row becomes `{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}`, the format of
the OpenAI, TRL and Hugging Face chat data sets, or `{"text": "…"}`. Other keys are kept and ignored.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.models import data_dir

from .errors import ConversationError
from .files import SUFFIXES, Row, is_hub_name, iterate_rows, open_hub
from .formats import FORMATS, UNKNOWN, convert
from .validation import EXAMPLE, find_problem

if TYPE_CHECKING:
    import datasets


SHOWN_PROBLEMS = 5
DATA_FILE = re.compile(  # such as train.jsonl, or a shard as the hub names them: train-00000-of-00002.parquet
    r"(?P<split>.+?)(-\d{5}-of-(?P<count>\d{5})(-\w+)?)?(?P<suffix>\.jsonl?(\.gz)?|\.parquet)"
)
ABOUT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # that lie beside data


@dataclass(frozen=True)
class Source:
    """The conversations of one file or split, and where they came from."""

    rows: list[dict[str, Any]]
    places: list[str]  # by row, for error messages: "file:line" of JSON lines, else "file: row k"
    format: str  # a key of FORMATS
    notes: list[str]  # sentences about what was converted


def read_conversations(path: str | Path) -> list[dict[str, Any]]:
    """The rows of `read_source`."""
    return read_source(path).rows


def read_source(path: str | Path) -> Source:
    """Read a file of conversations: JSON lines, a JSON array or Parquet, the former two also as .gz.

    Args:
        path: also a folder or the name of a data set on the hub, of which the split train is read (or the only one),
            or what `find_chat` gives for a split.

    Raises FileNotFoundError, and ConversationError that names up to five invalid rows.
    """
    if Path(path).is_dir() or (is_hub_name(str(path)) and ":" not in str(path)):
        files = find_chat(path)
        split = next(iter(files)) if len(files) == 1 else "train"
        if split not in files:
            raise ConversationError(f"{path} has the splits {', '.join(files)} and no train: name the file of one")
        source, others = read_source(files[split]), [k for k in files if k != split]
        notes = [f"read the split {split} of {path}, not {', '.join(others)}"] if others else []
        return replace(source, notes=notes + source.notes)
    return as_source(str(path), [converted(iterate_rows(str(path)))])


@dataclass(frozen=True)
class Converted:
    """A part of a data set, each row converted or refused."""

    rows: list[dict[str, Any]]
    places: list[str]
    formats: dict[str, str]  # each format that there is, and the place of its first row
    notes: list[str]
    problems: list[str]  # of the rows that were refused, each with its place


def converted(found: Iterable[Row]) -> Converted:
    """Convert and validate rows."""
    rows, places, formats, notes, problems = [], [], {}, {}, []
    for place, value in found:
        try:
            if isinstance(value, ConversationError):
                raise value
            name, row, said = convert(value)
            formats.setdefault(name, place)
            if len(formats) > 1 and name != next(iter(formats)):
                raise ConversationError(_two_formats(name, formats))
            if name != "text" and (problem := find_problem(row)):
                raise ConversationError(problem)
        except ConversationError as error:
            problems.append(f"{place}: {error}")
            continue
        rows.append(row)
        places.append(place)
        notes |= dict.fromkeys(said)
    return Converted(rows, places, formats, list(notes), problems)


def as_source(path: str, parts: Sequence[Converted]) -> Source:
    """The parts of one data set in their order. Raises ConversationError for invalid rows."""
    problems, formats = [], {}
    for part in parts:
        name, place = next(iter(part.formats.items()), ("", ""))
        if formats and name not in formats and name:
            problems.append(f"{place}: {_two_formats(name, formats)}")
        elif name:
            formats.setdefault(name, place)
        problems += part.problems
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        tail = [f"… and {more} more bad rows"] if more > 0 else []
        if any(UNKNOWN in problem for problem in problems):
            tail += ["The formats are:", *(f"  {name}: {example}" for name, example in FORMATS.items())]
        raise ConversationError("\n".join(problems[:SHOWN_PROBLEMS] + tail))
    rows, places = ([value for part in parts for value in getattr(part, key)] for key in ("rows", "places"))
    if not formats:
        raise ConversationError(f"{path}: no conversations in it. Write one a line, such as {EXAMPLE}")
    return Source(rows, places, next(iter(formats)), list(dict.fromkeys(n for part in parts for n in part.notes)))


def _two_formats(name: str, formats: dict[str, str]) -> str:
    first, at = next(iter(formats.items()))
    return f"a row of {name}, but {at} is of {first}: give each format its own file"


def find_chat(name: str | Path | None = None) -> dict[str, Path | str]:
    """What `load_chat` and `read_source` read, by split.

    `name` is a file (the split "train"), a folder with one file per split or shards of it, or a data set on the hub:
    owner/name, owner/name:split or owner/name:config:split; by default the environment variable FTKIT_DATA, else the
    almanac's chats. Shards such as train-00000-of-00002.parquet become one path with a *, and splits of the hub names.
    Raises FileNotFoundError where there is none.
    """
    source = str(name or os.environ.get("FTKIT_DATA") or data_dir() / "chat")
    if is_hub_name(source):
        return {"train": source} if ":" in source else {split: f"{source}:{split}" for split in open_hub(source)}
    folder = Path(source)
    if not folder.is_dir():
        return {"train": folder}
    found = defaultdict(list)
    for path in sorted(folder.glob("[!.]*")):
        if (match := DATA_FILE.fullmatch(path.name)) and path.name not in ABOUT_DATA and path.is_file():
            found[match["split"]].append((path, match["count"], match["suffix"]))
    if not found and (folder / "data").is_dir():  # as repositories of the hub lay it out
        return find_chat(folder / "data")
    if not found:
        raise FileNotFoundError(f"no data file in {folder}: it holds no {', '.join(SUFFIXES)}")
    return {split: _one_path(split, files) for split, files in found.items()}


def _one_path(split: str, files: list[tuple[Path, str | None, str]]) -> Path:
    path, count, suffix = files[0]
    if len(files) == int(count or 1) == 1:
        return path
    if count and len(files) == int(count) and all(other[1:] == (count, suffix) for other in files):
        return path.with_name(f"{split}-*-of-{count}*{suffix}")
    names = ", ".join(other[0].name for other in files)
    raise ConversationError(f"{path.parent}: the split {split} is {names}: keep one file, or one set of all its shards")


def load_chat(name: str | Path | None = None) -> "datasets.DatasetDict":
    """Load conversations (`messages`); `name` as in `find_chat`.

    The almanac's splits are train, test (held-out questions) and heldout_domains. Raises ConversationError
    or FileNotFoundError for what is not chat data.
    """
    from datasets import DatasetDict  # takes a second to import

    return DatasetDict({split: _as_dataset(read_source(path)) for split, path in find_chat(name).items()})


def _as_dataset(source: Source) -> "datasets.Dataset":
    """Rows as a Dataset that gives the same messages back. Arrow would fill keys that only some messages have with
    null, so such messages are stored as JSON; those of strings under the same keys stay an ordinary column."""
    from datasets import Dataset, Features, Json, List

    rows = source.rows
    columns = {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}
    messages = [message for row in rows for message in row.get("messages", [])]
    same = all(m.keys() == messages[0].keys() and all(isinstance(v, str) for v in m.values()) for m in messages)
    json_types = {"messages": List(Json()), "tools": List(Json()), "chat_template_kwargs": Json()}
    as_json = [key for key in json_types if key in columns and not (key == "messages" and same)]
    others = {key: values for key, values in columns.items() if key not in as_json}
    try:
        dataset = Dataset.from_dict(others, on_mixed_types="use_json")
        if not as_json:
            return dataset
        features = {**dataset.features, **{key: json_types[key] for key in as_json}}
        dumped = {key: [_dumped(value) for value in columns[key]] for key in as_json}
        dataset = Dataset.from_dict(others | dumped, Features(features))
        lossy = [
            f"{place}: a Dataset cannot store its {key} exactly. Use read_conversations"
            for place, row, stored in zip(source.places, rows, dataset.select_columns(as_json), strict=True)
            for key in as_json
            if json.dumps(stored[key]) != json.dumps(row.get(key))  # as text, in which 1 is not 1.0
        ]
    except Exception as error:  # pyarrow and the JSON reader each have their own types
        raise ConversationError(f"{source.places[0]} and the rows after it cannot be a Dataset: {error}") from error
    if lossy:
        raise ConversationError("\n".join(lossy[:SHOWN_PROBLEMS]))
    return dataset


def _dumped(value: Any) -> Any:
    """What a Json feature stores as it is: it would write floats itself, to ten digits."""
    if isinstance(value, list):
        return [json.dumps(item) for item in value]
    return None if value is None else json.dumps(value)
