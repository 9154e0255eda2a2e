"""Copy the course's notebooks to a folder of yours: `ftkit notebooks`.

Nothing that is there is overwritten, unless you say --overwrite. As they are shipped, notebooks have their exercises
open, with hint and solution folded below; --student leaves the solutions out, and --solutions puts them in place.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ftkit._arguments import parse

FOLDER = "ftkit-notebooks"  # in the working directory
SOLUTIONS_FOLDER = "ftkit-solutions"  # another one, so that solved notebooks never lie among a learner's own
ASSISTANTS = "AGENTS.md"  # what programming assistants read: give hints, not solutions
FOLDED = re.compile(r"<details><summary>Solution</summary>\n\n```python\n(.*)\n```\n\n</details>", re.S)


class UnreadableNotebook(ValueError):
    """A notebook whose solutions cannot be told from the rest. The message names it."""


def source_dir() -> Path:
    """The folder with the notebooks: inside an installed wheel, or `notebooks/` of a checkout."""
    package = Path(__file__).parent
    return package / "notebooks" if (package / "notebooks").is_dir() else package.parent / "notebooks"


def without_solutions(nb: dict) -> dict:
    """A notebook, as json reads it, without the cells that fold a solution; its hints stay."""
    return {**nb, "cells": [cell for cell in nb["cells"] if not _tagged(cell, "solution")]}


def with_solutions(nb: dict) -> dict:
    """A notebook, as json reads it, with each solution in the place of its exercise, not run yet.

    Raises UnreadableNotebook for a solution without its exercise, or in another form than the build gives it.
    """
    cells: list[dict] = []
    for cell in nb["cells"]:
        if not _tagged(cell, "solution"):
            cells.append(cell)
            continue
        found = FOLDED.fullmatch("".join(cell["source"]))
        place = next((n for n in reversed(range(len(cells))) if _tagged(cells[n], "exercise")), None)
        if found is None or place is None:
            raise UnreadableNotebook("a solution is not as the course's build folds it below its exercise")
        source = found[1].splitlines(keepends=True)
        cells[place] = {**cells[place], "source": source, "outputs": [], "execution_count": None}
    return {**nb, "cells": cells}


VARIANTS: dict[str, Callable[[dict], dict] | None] = {  # None: byte by byte
    "shipped": None,
    "student": without_solutions,
    "solutions": with_solutions,
}


def _tagged(cell: dict, tag: str) -> bool:
    return tag in cell["metadata"].get("tags", [])


def notebooks_named(names: Sequence[str]) -> list[Path]:
    """The course's notebooks of these numbers or names ("05", "05_chat_templates"); all of them for none.

    Raises FileNotFoundError for a name that no notebook has.
    """
    every = sorted(source_dir().glob("*.ipynb"))
    found = [path for path in every if not names or {path.stem, path.stem.partition("_")[0], path.name} & set(names)]
    known = {known for path in found for known in (path.stem, path.stem.partition("_")[0], path.name)}
    if unknown := [name for name in names if name not in known]:
        numbers = ", ".join(path.stem.partition("_")[0] for path in every)
        raise FileNotFoundError(f"no notebook {unknown[0]!r}: there are {numbers}")
    return found


def find_notebooks(names: Sequence[str]) -> list[Path]:
    """Notebooks by the path of a file, or as `notebooks_named` finds them, and raises."""
    files = [Path(name) for name in names if Path(name).is_file()]
    named = [name for name in names if not Path(name).is_file()]
    return files + (notebooks_named(named) if named or not files else [])


def copy_notebooks(
    folder: Path, variant: str = "shipped", names: Sequence[str] = (), overwrite: bool = False
) -> list[Path]:
    """Copy notebooks that `folder` lacks, or all where `overwrite`; returns those written. AGENTS.md comes along.

    variant: a key of VARIANTS. names: as for `notebooks_named`.

    Raises OSError where the folder cannot be written, FileNotFoundError for an unknown name and UnreadableNotebook
    where solutions cannot be found; before anything is written.
    """
    chosen = [path for path in notebooks_named(names) if overwrite or not (folder / path.name).exists()]
    change = VARIANTS[variant]
    texts = {path.name: _changed(path, change) for path in chosen if change}
    folder.mkdir(parents=True, exist_ok=True)
    for path in chosen:
        part = folder / f".{path.name}.part"  # a copy that is cut off must not pass for the learner's own
        if change:
            part.write_text(texts[path.name], encoding="utf-8")
        else:
            shutil.copyfile(path, part)
        part.replace(folder / path.name)
    page = source_dir() / ASSISTANTS
    if page.is_file() and not (folder / ASSISTANTS).exists():
        shutil.copyfile(page, folder / ASSISTANTS)
    return [folder / path.name for path in chosen]


def _changed(path: Path, change: Callable[[dict], dict]) -> str:
    try:
        nb = change(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableNotebook(f"{path}: {error}") from error
    return json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n"  # as nbformat writes it


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ftkit notebooks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, help=f"where they go (default: {FOLDER}, {SOLUTIONS_FOLDER})")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--student", action="store_true", help="without the folded solutions; hints stay")
    which.add_argument("--solutions", action="store_true", help="with the solutions in place of the exercises")
    parser.add_argument("--only", nargs="+", default=[], metavar="NN", help="these notebooks, such as 05 08")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace notebooks that are there, and your work in them"
    )
    given = parse(parser, arguments)
    variant = "student" if given.student else "solutions" if given.solutions else "shipped"
    folder = given.folder or Path(SOLUTIONS_FOLDER if given.solutions else FOLDER)
    try:
        if folder.is_dir() and folder.samefile(source_dir()):
            raise FileExistsError(0, "the notebooks are copied from there")
        written = copy_notebooks(folder, variant, given.only, given.overwrite)
    except UnreadableNotebook as error:
        print(f"error: {error}: take the notebooks as they were shipped", file=sys.stderr)
        return 2
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot copy to {folder}: {error.strerror}: give another folder", file=sys.stderr)
        return 2
    kept = len(list(folder.glob("*.ipynb"))) - len(written)
    print(f"{folder}: {len(written)} notebooks copied, {kept} that were there left as they are")
    return 0


if __name__ == "__main__":
    sys.exit(main())
