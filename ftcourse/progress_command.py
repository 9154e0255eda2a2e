"""Show which exercises are solved; export it as one file; collect the files of a class: `ftkit progress`.

It is kept on this machine, in a file of your own, and nothing is sent: you give the exported file to your teacher, or
not. FTKIT_PROGRESS names another file; FTKIT_PROGRESS=off keeps nothing.
"""

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path

from ftkit._arguments import parse

from .solved import Progress, list_exercises, progress_file, read_progress

FORMAT = "ftkit progress 1"  # of an exported file
LARGEST = 1_000_000  # bytes of one; a real one has a few thousand


class NotAnExport(ValueError):
    """A file that `ftkit progress --export` did not write. The message says what is wrong with it."""


def show(progress: dict[str, Progress], path: Path | None) -> str:
    """A line for each exercise, under its notebook, and a total."""
    lines, exercises = [], list_exercises()
    for notebook in dict.fromkeys(exercise.notebook for exercise in exercises):
        own = [exercise for exercise in exercises if exercise.notebook == notebook]
        solved = sum(_is_solved(progress, exercise.key) for exercise in own)
        lines.append(f"{notebook}: {solved} of {len(own)}")
        for exercise in own:
            seen = progress.get(exercise.key, Progress())
            when = f"solved {seen.solved[:10]}" if seen.solved else "open"
            tries = f", {seen.tries} wrong {'try' if seen.tries == 1 else 'tries'}" if seen.tries else ""
            lines.append(f"  {'✔' if seen.solved else '○'} {exercise.name}: {when}{tries}")
    total = sum(_is_solved(progress, exercise.key) for exercise in exercises)
    where = f"kept in {path}" if path else "FTKIT_PROGRESS is off: nothing is kept"
    return "\n".join([*lines, "", f"{total} of {len(exercises)} exercises solved; {where}"])


def export(progress: dict[str, Progress], file: Path, name: str) -> None:
    """Write progress under a name to a file, replacing an earlier export only.

    Raises FileExistsError for a file that is something else, OSError where it cannot be written.
    """
    if file.exists():
        try:
            read_export(file)
        except NotAnExport:
            raise FileExistsError(f"{file} is there and is no export of `ftkit progress`: give another name") from None
    known = {exercise.key for exercise in list_exercises()}
    rows = {key: vars(seen) for key, seen in sorted(progress.items()) if key in known}
    text = json.dumps({"format": FORMAT, "name": name, "exercises": rows}, indent=1, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def read_export(file: Path) -> tuple[str, dict[str, Progress]]:
    """The name and the progress in an exported file. Raises NotAnExport for any other file."""
    try:
        if file.stat().st_size > LARGEST:
            raise NotAnExport(f"{file.name} has over {LARGEST:,} bytes")
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise NotAnExport(f"{file.name} has the format {content['format']!r}, not {FORMAT!r}")
        rows = {str(key): Progress(int(row["tries"]), row["solved"]) for key, row in content["exercises"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, NotAnExport):
            raise
        raise NotAnExport(f"{file.name} is no export of `ftkit progress`") from error
    # Only what prints: the file comes from somebody else, and a terminal obeys control characters.
    name = "".join(letter for letter in str(content.get("name") or "") if letter.isprintable())
    return name[:60] or file.stem, rows


def collect(folder: Path) -> tuple[str, list[str]]:
    """A table of learners and notebooks, one of exercises, and what was wrong with files that were left out.

    Raises FileNotFoundError for a folder without any JSON file.
    """
    learners, wrong = [], []
    files = sorted(folder.glob("*.json"))
    if not files:
        raise FileNotFoundError(
            f"no .json file in {folder}: put there what learners got from `ftkit progress --export`"
        )
    for file in files:
        try:
            name, progress = read_export(file)
        except NotAnExport as error:
            wrong.append(str(error))
        else:
            learners.append((name, file.name, progress))
    names = Counter(name for name, _, _ in learners)
    rows = [(name if names[name] == 1 else f"{name} ({file})", progress) for name, file, progress in learners]
    return f"{_by_learner(rows)}\n\n{_by_exercise(rows)}", wrong


def _by_learner(rows: list[tuple[str, dict[str, Progress]]]) -> str:
    exercises = list_exercises()
    counts = Counter(exercise.notebook for exercise in exercises)
    lines = [["learner", "solved", *(notebook.partition("_")[0] for notebook in counts)]]
    for name, progress in rows:
        solved = Counter(exercise.notebook for exercise in exercises if _is_solved(progress, exercise.key))
        cells = [f"{solved[notebook]}/{count}" for notebook, count in counts.items()]
        lines.append([name, f"{solved.total()}/{len(exercises)}", *cells])
    return _aligned(lines)


def _by_exercise(rows: list[tuple[str, dict[str, Progress]]]) -> str:
    lines = [["exercise", "solved by", "wrong tries"]]
    for exercise in list_exercises():
        seen = [progress.get(exercise.key, Progress()) for _, progress in rows]
        by = sum(each.solved is not None for each in seen)
        where = exercise.notebook.partition("_")[0]
        lines.append([f"{where} {exercise.name}", f"{by} of {len(rows)}", str(sum(each.tries for each in seen))])
    return _aligned(lines)


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        [cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in enumerate(pairs)]
        for pairs in (zip(line, widths, strict=True) for line in lines)
    )
    return "\n".join("  ".join(line) for line in padded)


def _is_solved(progress: dict[str, Progress], key: str) -> bool:
    return key in progress and progress[key].solved is not None


def reset(path: Path) -> Path | None:
    """Set the file of progress aside under another name, and return that; None where there was none."""
    if not path.exists():
        return None
    aside = path.with_name(path.name + ".before")
    os.replace(path, aside)
    return aside


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ftkit progress", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--export", type=Path, metavar="FILE.json", help="write your progress to one file")
    what.add_argument("--collect", type=Path, metavar="FOLDER", help="print tables of the exported files in a folder")
    what.add_argument("--reset", action="store_true", help="begin again; the file so far is set aside, not deleted")
    parser.add_argument("--name", help="with --export: under which name (default: the file's)")
    given = parse(parser, arguments)
    if given.name and not given.export:
        parser.error("--name goes with --export")
    try:
        if given.collect:
            table, wrong = collect(given.collect)
            print(table)
            for sentence in wrong:
                print(f"left out: {sentence}", file=sys.stderr)
            return 1 if wrong else 0
        path = progress_file()
        if given.reset:
            aside = reset(path) if path else None
            print(f"set aside as {aside}" if aside else "there was no progress to reset")
            return 0
        progress = read_progress(path)
        if given.export:
            export(progress, given.export, given.name or given.export.stem)
            print(f"{given.export}: {sum(seen.solved is not None for seen in progress.values())} solved exercises")
            return 0
        print(show(progress, path))
    except ModuleNotFoundError as error:  # platformdirs, which knows the data folder of each system
        print(f"error: {error.name} is not installed: pip install 'ftkit[lab]'", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
