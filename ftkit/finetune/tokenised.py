"""Large files of conversations: read, checked and tokenised in parts by several processes, once for all ranks and runs.

The tokens are kept in a folder of arrays that are mapped, not read: a rank takes the memory of the examples that it
has looked at. The name of the folder is a hash of all that the tokens depend on: the file's content, the tokenizer, the
template and the lengths. So the second run on a file, and every rank but the first, begins with finished tokens.
"""

import codecs
import ctypes
import gc
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import transformers
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

import ftkit
from ftkit.batching import Example
from ftkit.chat import length_quantiles
from ftkit.chat.dataset import Part, describe, observe
from ftkit.chat.rendering import find_training_template
from ftkit.conversations import ConversationError
from ftkit.conversations.files import json_rows
from ftkit.conversations.reading import Converted, as_source, converted
from ftkit.conversations.rendering import ChatTemplate, own_template
from ftkit.findings import Finding, as_records, sort_findings
from ftkit.loss import IGNORE_INDEX

LARGE = 1 << 23  # bytes of a file from which on it is tokenised so; below, that takes seconds
PART = 1 << 20  # bytes that a process takes at a time
KEPT = 8  # data sets in the cache: those used last
FORMAT = 1  # of the stored folder; a change of what is stored or checked raises it
HERE = Path("\0file\0")  # stands for the file in stored places, because an equal file may lie elsewhere
ABOUT = "about.json"  # written last
MOST_WORKERS = 16
PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when its parent ends
ARRAYS = {"ids": np.int32, "in_loss": np.bool_, "lengths": np.int32}  # of each token, and of each example


class TokenisedExamples(Sequence[Example]):
    """Examples in a folder of arrays; those that are asked for become lists."""

    def __init__(self, folder: Path):
        arrays = (np.memmap(folder / name, dtype, "r") for name, dtype in ARRAYS.items())
        self._ids, self._in_loss, lengths = arrays
        self._ends = np.cumsum(lengths, dtype=np.int64)
        self.digest = json.loads((folder / ABOUT).read_text(encoding="utf-8"))["digest"]

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        k = range(len(self))[index]
        tokens = slice(int(self._ends[k - 1]) if k else 0, int(self._ends[k]))
        ids = self._ids[tokens]
        return {"input_ids": ids.tolist(), "labels": np.where(self._in_loss[tokens], ids, IGNORE_INDEX).tolist()}


@dataclass(frozen=True)
class Tokenised:
    """A file of conversations, tokenised and checked."""

    examples: TokenisedExamples
    findings: list[Finding]
    format: str  # a key of FORMATS
    notes: list[str]  # sentences about what was converted
    quantiles: dict[str, int]  # tokens of an example, as `length_quantiles` has them


def is_large(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a path is that of a large file of JSON lines, on a system that can fork processes."""
    path = Path(path)
    if not (sys.platform == "linux" and tokenizer.is_fast and path.suffix == ".jsonl" and path.is_file()):
        return False
    with path.open("rb") as file:  # a JSON array is one text
        return path.stat().st_size >= LARGE and file.read(512).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{"


def tokenise(
    path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int, positions: int | None, progress: bool = False
) -> Tokenised | None:
    """The examples of a large file, truncated at `max_length`, from the cache or by several processes.

    None where the tokenizer has no template to train with. Raises as `read_source` does.
    """
    training, found = find_training_template(tokenizer)
    if training is None:
        return None
    task = Task(path, tokenizer, training, max_length, positions)
    ranges, content = split(path)
    with _locked(f"{content}{task.identity}") as folder:
        if not (folder / ABOUT).is_file():
            with tempfile.TemporaryDirectory(dir=folder.parent) as name:
                _build(task, ranges, Path(name) / "new", progress)
                os.rename(Path(name) / "new", folder)
        os.utime(folder)
        examples = TokenisedExamples(folder)  # mapped: they stay if the folder is removed
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    for one in about["findings"]:
        found.append(Finding(**{**one, "observed": one["observed"].replace(str(HERE), str(path))}))
    return Tokenised(examples, sort_findings(found), about["format"], about["notes"], about["quantiles"])


class Range(NamedTuple):
    """Whole lines of a file."""

    start: int  # byte
    stop: int
    first_line: int  # counted from 1


def split(path: Path) -> tuple[list[Range], str]:
    """The file in parts of about PART bytes, and the hash of its content."""
    ranges, digest, start, at, line, lines = [], hashlib.sha256(), 0, 0, 1, 0
    with path.open("rb") as file:
        while block := file.readline() if at - start >= PART else file.read(PART):
            digest.update(block)
            at += len(block)
            lines += block.count(b"\n")
            if block.endswith(b"\n") and at - start >= PART:
                ranges.append(Range(start, at, line))
                start, line, lines = at, line + lines, 0
    return [*ranges, *([Range(start, at, line)] if at > start else [])], digest.hexdigest()


@dataclass(frozen=True)
class Task:
    """What the processes inherit when they are forked."""

    path: Path
    tokenizer: PreTrainedTokenizerBase
    training: ChatTemplate
    max_length: int
    positions: int | None

    def part(self, given: tuple[int, Range]) -> tuple[Converted, Part | None, dict[str, np.ndarray]]:
        """One range of the file: how its rows were read and checked, and the arrays of its tokens."""
        number, (start, stop, first_line) = given
        with self.path.open("rb") as file:
            file.seek(start)
            content = file.read(stop - start)
        try:
            text = content.decode("utf-8-sig" if start == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise ConversationError(f"{self.path}: not UTF-8 text ({error.reason}). Save the file as UTF-8") from None
        source = converted(json_rows(HERE, io.StringIO(text, newline=None), first_line))
        if not source.rows or source.problems:
            return replace(source, rows=[], places=[]), None, {}
        # A part has more rows than are compared with their prompts, so those are all in the first one.
        given = {"positions": self.positions, "places": source.places, "first": number * sys.maxsize}
        part = observe(self.tokenizer, self.training, source.rows, self.max_length, **given)
        rows = [{key: values[: self.max_length] for key, values in row.items()} for row in part.examples]
        ids, labels = (np.array([i for row in rows for i in row[key]], np.int32) for key in ("input_ids", "labels"))
        lengths = np.array([len(row["labels"]) for row in rows], np.int32)
        arrays = {"ids": ids, "in_loss": labels != IGNORE_INDEX, "lengths": lengths}
        lines = np.array([int(place.rpartition(":")[2]) for place in source.places])
        part = replace(part, examples=[], lengths=np.array(part.lengths, np.int32), places=_Places(lines))
        return replace(source, rows=[], places=[]), part, arrays

    @property
    def identity(self) -> str:
        """Of all that the tokens depend on beside the file's content."""
        tokenizer = self.tokenizer
        parts = [
            ftkit.__version__,
            FORMAT,
            self.max_length,
            self.positions,
            self.training.source,
            own_template(tokenizer),
        ]
        parts += [type(tokenizer).__name__, tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map]
        return hashlib.sha256(repr([*parts, transformers.__version__]).encode()).hexdigest()


class _Places(Sequence[str]):
    """The places of rows by their line numbers."""

    def __init__(self, lines: np.ndarray):
        self._lines = lines

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, k: int) -> str:
        return f"{HERE}:{self._lines[k]}"


def _build(task: Task, ranges: list[Range], folder: Path, progress: bool) -> None:
    """Write the arrays and what is known of them, part by part: no more than a few parts are in memory."""
    folder.mkdir()
    sources, parts, digest = [], [], hashlib.sha256()
    context = multiprocessing.get_context("fork")  # the tokenizer is inherited, not loaded again
    workers = min(len(ranges), len(os.sched_getaffinity(0)), MOST_WORKERS)
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in ARRAYS}
        pool = stack.enter_context(ProcessPoolExecutor(workers, context, _inherit, (task,)))
        done = pool.map(_part, enumerate(ranges))
        for source, part, arrays in tqdm(done, "tokenise", len(ranges), disable=not progress, delay=1, leave=False):
            sources.append(source)
            if part is not None:
                parts.append(part)
                digest.update(digest_bytes(arrays))
                for name, array in arrays.items():
                    files[name].write(array.astype(ARRAYS[name]).tobytes())
    try:
        source = as_source(str(task.path), sources)
    except ConversationError as error:
        raise ConversationError(str(error).replace(str(HERE), str(task.path))) from None
    lengths = np.concatenate([part.lengths for part in parts]).tolist()
    found = describe(task.tokenizer, parts, task.max_length, task.positions)
    about = {"digest": digest.hexdigest()[:16], "format": source.format, "notes": source.notes}
    about |= {"quantiles": length_quantiles(lengths), "findings": as_records(found)}
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def digest_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """What `TrainingData.digest` hashes of these examples: of each its length, ids, length and labels, in int64."""
    lengths, ids = arrays["lengths"].astype(np.int64), arrays["ids"]
    before = np.cumsum(lengths) - lengths  # tokens of the examples before
    starts = 2 * (before + np.arange(len(lengths)))
    of_token = np.repeat(np.arange(len(lengths)), lengths)
    at = starts[of_token] + 1 + np.arange(len(ids)) - before[of_token]
    found = np.empty(2 * (len(ids) + len(lengths)), np.int64)
    found[starts] = found[starts + 1 + lengths] = lengths
    found[at] = ids
    found[at + 1 + lengths[of_token]] = np.where(arrays["in_loss"], ids, IGNORE_INDEX)
    return found.tobytes()


_inherited: list[Task] = []  # of a forked process: the one task that it works on


def _inherit(task: Task) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # else they would wait for ever if the program is killed
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has a core
    gc.freeze()  # what was inherited is never searched for garbage, and copied for that
    gc.disable()  # a fifth of the time, with millions of small objects; `_part` collects
    _inherited[:] = [task]


def _part(given: tuple[int, Range]):
    try:
        return _inherited[0].part(given)
    finally:
        gc.collect()


@contextmanager
def _locked(key: str) -> Iterator[Path]:
    """The folder of a key in the cache, which other processes, such as this machine's ranks, wait for meanwhile."""
    import fcntl  # which Windows lacks

    root = cache_dir()
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield root / name
        _keep_newest(root)


def cache_dir() -> Path:
    """FTKIT_CACHE, else ftkit in the user's cache, else a folder of temporary files."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    temporary = Path(tempfile.gettempdir()) / f"ftkit-{os.getuid()}"
    for root in (Path(os.environ.get("FTKIT_CACHE") or Path(home) / "ftkit") / "tokens", temporary):
        with suppress(OSError):
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            if os.access(root, os.W_OK) and root.stat().st_uid == os.getuid():
                return root
    raise OSError("there is no folder to keep tokens in: let the environment variable FTKIT_CACHE name one")


def _keep_newest(root: Path) -> None:
    folders = sorted((path for path in root.iterdir() if (path / ABOUT).is_file()), key=os.path.getmtime, reverse=True)
    for folder in folders[KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)
