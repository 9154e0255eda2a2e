"""Which exercises a learner has solved, kept in a file on the learner's own machine.

A checker that is called in a notebook's kernel appends a line of JSON to that file when the verdict is news; nothing
leaves the machine. The environment variable FTKIT_PROGRESS names another file, or is "off": then nothing is kept or
shown, as in builds and tests. Keeping a verdict prints nothing and cannot fail. `ftkit progress` shows the file.
"""

import ast
import contextlib
import functools
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from .copying import source_dir

VARIABLE, OFF = "FTKIT_PROGRESS", "off"
CHECKERS = "ftcourse.exercises."  # what is not defined in there is no exercise of the course


@dataclass(frozen=True)
class Exercise:
    """An exercise of the course. `key` names it in files, whatever number its notebook has."""

    notebook: str
    key: str  # module and function of its checker

    @property
    def name(self) -> str:
        return self.key.partition(".check_")[2].replace("_", " ")


@dataclass
class Progress:
    """What is known of one exercise: wrong answers so far, and when it was first right (ISO 8601), or None."""

    tries: int = 0
    solved: str | None = None


@functools.cache
def list_exercises() -> tuple[Exercise, ...]:
    """Every exercise, in the order of the notebooks. The checkers' files are read and not imported: they need torch."""
    topics = {}  # of a notebook -> its name; copies that JupyterLab made have another form
    for path in sorted(source_dir().glob("*.ipynb")):
        if named := re.fullmatch(r"\d\d[a-z]?_(\w+)", path.stem):
            topics[named[1]] = path.stem
    found = []
    for path in (Path(__file__).parent / "exercises").glob("*.py"):
        notebook = next((name for topic, name in topics.items() if f"{topic}_".startswith(f"{path.stem}_")), None)
        if notebook is None:
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            marks = getattr(node, "decorator_list", [])
            if any(isinstance(mark, ast.Name) and mark.id == "checker" for mark in marks):
                found.append(Exercise(notebook, f"{path.stem}.{node.name}"))
    return tuple(sorted(found, key=lambda exercise: exercise.notebook))


def progress_file() -> Path | None:
    """Where progress is kept: what FTKIT_PROGRESS names, else a file in the user's data folder; None if it is off."""
    given = os.environ.get(VARIABLE)
    if given is None:
        from platformdirs import user_data_path

        return user_data_path("ftkit", appauthor=False) / "progress.jsonl"
    return None if given in ("", OFF) else Path(given).expanduser()


def read_progress(path: Path | None) -> dict[str, Progress]:
    """Progress by the exercise's key. Empty without a file; a line that was cut off counts as absent.

    Raises OSError for a file that is there and cannot be read.
    """
    found: dict[str, Progress] = {}
    if path is None or not path.exists():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            key, right, at = row["exercise"], row["right"], row["at"]
        except (ValueError, TypeError, KeyError):
            continue
        seen = found.setdefault(key, Progress())
        if not right:
            seen.tries += 1
        elif seen.solved is None:
            seen.solved = at
    return found


def recorded(check: Callable) -> Callable:
    """Decorate a checker so that its verdicts are kept, where a learner runs it in a notebook."""

    @functools.wraps(check)
    def verdict(*args, **kwargs):
        found = check(*args, **kwargs)
        with contextlib.suppress(Exception):  # a full disk or a read-only home must not fail an exercise
            if check.__module__.startswith(CHECKERS) and not found.not_attempted and _in_kernel():
                keep(f"{check.__module__.removeprefix(CHECKERS)}.{check.__name__}", found.right, progress_file())
        return found

    return verdict


def keep(key: str, right: bool, path: Path | None) -> None:
    """Append a verdict to the file, until the exercise is solved. Raises OSError where it cannot be written.

    Lines are appended, so that two notebooks that write at the same time lose nothing.
    """
    if path is None or ((seen := read_progress(path).get(key)) and seen.solved):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {"exercise": key, "right": right, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _in_kernel() -> bool:
    """Whether this is the kernel of a notebook, and not a script or a test."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython and ipython.get_ipython(), "kernel", None) is not None
