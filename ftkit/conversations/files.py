"""Rows of data sets, each with its place for error messages: JSON lines, JSON arrays, Parquet, and names on the hub."""

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

from .errors import ConversationError
from .validation import EXAMPLE

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
MAX_DEPTH = 100  # levels; templates and json.dumps recurse, so deeper rows would fail later, without their line
GZIP = b"\x1f\x8b"
REFUSED = {  # first bytes, and what they mean
    b"PK\x03\x04": "a zip archive: unpack it",
    b"\x80": "a pickle, which can run code when it is read: write its rows as JSON lines",
    b"ARROW1": "an Arrow file: write it with Dataset.to_parquet",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
    b"BZh": "compressed with bzip2: unpack it, or compress it with gzip",
    b"\xfd7zXZ": "compressed with xz: unpack it, or compress it with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstandard: unpack it, or compress it with gzip",
}
HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+(:[\w.-]+){0,2}", re.ASCII)
SPACE = re.compile(r"\s*")

Row = tuple[str, Any]  # a place, and what stands there: parsed JSON, or the ConversationError that says why it is not


def is_hub_name(source: str) -> bool:
    """Whether `source` reads as owner/name, owner/name:split or owner/name:config:split and is no path here."""
    return bool(HUB_NAME.fullmatch(source)) and not source.endswith(SUFFIXES) and not Path(source).exists()


def open_hub(source: str) -> Any:
    """A data set of the hub, streamed: one split, or a dict of all of them where `source` names none.

    Raises FileNotFoundError with what the hub answered.
    """
    from datasets import load_dataset  # takes a second to import

    repository, *rest = source.split(":")
    config, split = (rest[0] if len(rest) == 2 else None), (rest[-1] if rest else None)
    try:
        return load_dataset(repository, config, split=split, streaming=True, trust_remote_code=False)
    except Exception as error:  # each way to fail has a type of its own
        raise FileNotFoundError(
            f"{source}: there is no such file or folder, and the hub gives no such data set ({_short(error)}). "
            "Give a path, or owner/name, owner/name:split or owner/name:config:split"
        ) from error


def iterate_rows(source: str) -> Iterator[Row]:
    """All rows of a file, of a pattern of files (train-*.parquet) or of a split on the hub.

    Raises FileNotFoundError, and ConversationError for a file of which nothing more can be read.
    """
    if is_hub_name(source):
        yield from _hub_rows(source)
        return
    path = Path(source)
    paths = [path] if path.is_file() else sorted(path.parent.glob(path.name)) if "*" in path.name else []
    if not paths:
        raise FileNotFoundError(f"no data file at {path}: give a {', '.join(SUFFIXES)} file of conversations")
    for path in paths:
        yield from _file_rows(path)


def parse_json(text: str) -> Any:
    """Like json.loads, for text that is rendered later: strict, and nothing is lost silently.

    Raises ConversationError for what is not JSON, repeated keys, numbers that are not finite, lone surrogates and
    deep nesting.
    """
    value, end = _decode(text, len(text) - len(text.lstrip()))
    if text[end:].strip():
        raise ConversationError(f"not JSON (more text after column {end})")
    return value


def _decode(text: str, start: int) -> tuple[Any, int]:
    try:
        value, end = DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ConversationError(f"not JSON ({error.msg} at {line}column {error.colno})") from None
    except RecursionError:
        raise ConversationError(f"nested more than {MAX_DEPTH} levels deep: write it flatter") from None
    except ConversationError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise ConversationError(f"not JSON that Python reads ({error})") from None
    part = text[start:end]
    if part.count("[") + part.count("{") > MAX_DEPTH:  # else it cannot be that deep
        _refuse_depth(value)
    if "\\ud" in part or "\\uD" in part:
        _refuse_surrogates(value)
    return value, end


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ConversationError(f"the key {repeated!r} stands twice in one object, and only the last counts: keep one")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ConversationError(f"{text} is not a finite number: write a number, a string or null")
    return value


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite)


def _refuse_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        found = error.object[error.start].encode("unicode_escape").decode()
        raise ConversationError(
            f"a lone surrogate, {found}, is half a character: write both halves, or the character itself"
        ) from None


def _refuse_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        if (depth := depth + 1) > MAX_DEPTH + 1:
            raise ConversationError(f"nested more than {MAX_DEPTH} levels deep: write it flatter")
        children = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = list(chain.from_iterable(children))


def _file_rows(path: Path) -> Iterator[Row]:
    if path.suffix in (".csv", ".tsv"):
        raise ConversationError(f"{path}: a table of {path.suffix[1:].upper()}: write JSON lines or Parquet instead")
    try:
        with path.open("rb") as file:
            head = file.read(512)
        if head.startswith(b"PAR1") or path.suffix == ".parquet":
            yield from _parquet_rows(path)
            return
        opener: Any = open
        if head.startswith(GZIP):
            opener = gzip.open
            with gzip.open(path) as file:
                head = file.read(512)
        _refuse_binary(path, head)
        with opener(path, "rt", encoding="utf-8-sig") as file:  # with or without a byte-order mark
            yield from json_rows(path, file)
    except UnicodeDecodeError as error:
        raise ConversationError(f"{path}: not UTF-8 text ({error.reason}). Save the file as UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConversationError(f"{path}: the gzip data are damaged ({error}). Compress the file again") from None


def _refuse_binary(path: Path, head: bytes) -> None:
    for start, meaning in REFUSED.items():
        if head.startswith(start):
            raise ConversationError(f"{path}: {meaning}")
    if b"\0" in head:
        raise ConversationError(f"{path}: binary data, not UTF-8 text. Write JSON lines or Parquet instead")


def json_rows(path: Path, file: IO[str], first: int = 1) -> Iterator[Row]:
    """The rows of JSON lines, whose first line has the number `first` in its file, or of one JSON text."""
    begun = first > 1
    for number, line in enumerate(file, start=first):
        if not line.strip():
            continue
        if not begun and line.lstrip().startswith("["):
            yield from _array_rows(path, line + file.read())
            return
        place = f"{path}:{number}"
        try:
            value = parse_json(line)
        except ConversationError as error:
            if begun or not path.name.removesuffix(".gz").endswith(".json"):
                remedy = f". Write {EXAMPLE}" if str(error).startswith("not JSON") else ""
                yield place, ConversationError(f"{error}{remedy}")
                continue
            try:  # one object over several lines, as editors indent it
                value = parse_json(line + file.read())
            except ConversationError as error:
                yield str(path), ConversationError(f"{error}. Write an array of rows, or one object per line")
                return
        begun = True
        yield place, value


def _array_rows(path: Path, text: str) -> Iterator[Row]:
    at, number = _skip(text, text.index("[") + 1), 0
    while not text.startswith("]", at):
        number += 1
        try:
            value, end = _decode(text, at)
            at = _skip(text, end)
            if not text.startswith((",", "]"), at):
                raise ConversationError("not JSON (no comma and no ] after this row)")
        except ConversationError as error:
            yield f"{path}: row {number}", error
            return  # nobody knows where the next row starts
        yield f"{path}: row {number}", value
        if text[at] == ",":
            at = _skip(text, at + 1)
    if text[at + 1 :].strip():
        yield str(path), ConversationError("more text after the array of rows: write one array, or one object per line")


def _skip(text: str, at: int) -> int:
    return SPACE.match(text, at).end()


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as parquet
    from datasets import Features  # decodes columns that `datasets` wrote as Json

    try:
        with parquet.ParquetFile(path) as file:
            features = Features.from_arrow_schema(file.schema_arrow)
            rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches())
            for number, row in enumerate(rows, start=1):
                yield f"{path}: row {number}", _without_nulls(features.decode_example(row))
    except Exception as error:  # each way to be damaged has a type of its own
        raise ConversationError(f"{path}: cannot be read as Parquet ({_short(error)}). Write it again") from error


def _hub_rows(source: str) -> Iterator[Row]:
    rows = open_hub(source)
    try:
        for number, row in enumerate(rows, start=1):
            yield f"{source}: row {number}", _without_nulls(row)
    except Exception as error:
        raise ConversationError(f"{source}: reading from the hub failed ({_short(error)}). Try again") from error


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """Arrow fills keys that some structs lack with null, which templates write or take for a value; they are removed
    from all that is nested. The null content of a message with tool calls stays."""

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(item) for item in value]
        if isinstance(value, dict):
            kept = {"content"} if value.get("tool_calls") else set()
            return {k: clean(v) for k, v in value.items() if v is not None or k in kept}
        return value

    return {key: clean(value) for key, value in row.items()}


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {''.join(str(error).strip().splitlines()[:1])}"
