"""Turn notebooks/source/NN_topic.py into the executed notebook that learners open, the same bytes every time.

    python notebooks/build.py                     rebuild the notebooks whose source changed
    python notebooks/build.py 01_gradient_masks   rebuild these
    python notebooks/build.py --all               rebuild all (after a change to ftkit or a dependency)
    python notebooks/build.py --check             say which notebooks disagree with their source; run nothing
    python notebooks/build.py --stamp             bring text and set-up cells up to date; run nothing
    python notebooks/build.py --colab FOLDER      write the variants for Colab, with absolute links; run nothing

A source is a jupytext percent script that holds the solutions; notebooks/source/README.md says how to write
one. Whether it changed is decided cell by cell: the notebook that it would make is compared with the one that
is there. A cell that fails without the tag `raises-exception` stops the build; the old notebook stays.
The map comes last, after the ledger (ledger.py): it shows what the others promise and found.
"""

import argparse
import hashlib
import os
import re
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat.v4 import new_markdown_cell
from tqdm import tqdm

import hosted
import ledger
from stable import METADATA, kernel_environment, normalise, warm_up

HERE = Path(__file__).resolve().parent
CELL_TIMEOUT = 300  # seconds
MARKER = re.compile(r"^[ \t]*### (?:BEGIN|END) SOLUTION[ \t]*(?:\n|\Z)", re.M)
SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION[ \t]*\n(?:.*\n)*?[ \t]*### END SOLUTION[ \t]*$", re.M)


class BuildError(Exception):
    """A source that breaks a rule, or a cell that fails. The message is for the author of the source."""


def tagged(cell, tag):
    return tag in cell.metadata.get("tags", [])


def read_source(path):
    """The source as a notebook, solutions and markers included. Raises BuildError where a marker is amiss."""
    nb = jupytext.read(path, fmt="py:percent")
    nb.metadata, nb.nbformat, nb.nbformat_minor = nbformat.from_dict(METADATA), 4, 5
    for number, cell in enumerate(nb.cells):
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if tagged(cell, "hide-input"):
            cell.metadata["jupyter"] = {"source_hidden": True}
        cell.source = hosted.set_up(cell.source)
        blocks, markers = len(SOLUTION.findall(cell.source)), len(MARKER.findall(cell.source))
        after_exercise = number > 0 and tagged(nb.cells[number - 1], "exercise")
        wrong = [
            (markers != 2 * blocks, "a BEGIN SOLUTION without its END SOLUTION, or the other way round"),
            (tagged(cell, "exercise") and not blocks, "an exercise without a solution"),
            (blocks and not tagged(cell, "exercise"), "a solution in a cell that is not tagged `exercise`"),
            (tagged(cell, "hint") and not after_exercise, "a hint that follows no exercise"),
            (cell.cell_type == "code" and not cell.source.strip(), "an empty code cell"),
        ]
        for broken, rule in wrong:
            if broken:
                raise BuildError(f"{Path(path).name}, cell {number}: {rule}\n\n{cell.source}")
    hosted.add_badge(nb, Path(path).stem)
    return nb


def solve(nb_source):
    """The solved variant of a source: solutions kept, markers dropped. Run by the tests, never shipped."""
    nb = nbformat.from_dict(nb_source)
    for cell in nb.cells:
        cell.source = MARKER.sub("", cell.source).rstrip("\n")
    return with_ids(nb)


def stub(nb_source):
    """The learner's variant: a solution becomes `...` and stands folded below the hint or exercise."""
    nb = nbformat.from_dict(nb_source)
    cells, folded = [], []
    for cell in nb.cells:
        if not tagged(cell, "hint"):
            cells += folded
            folded = []
        if tagged(cell, "exercise"):
            code = MARKER.sub("", cell.source).rstrip("\n")
            text = f"<details><summary>Solution</summary>\n\n```python\n{code}\n```\n\n</details>"
            folded = [new_markdown_cell(text, metadata={"tags": ["solution"]})]
            cell.source = SOLUTION.sub(r"\1...  # your code here", cell.source)
        cells.append(cell)
    nb.cells = cells + folded
    return with_ids(nb)


def with_ids(nb):
    """Name every cell after its content, in place: an id then changes where its cell does, and only there."""
    seen = {}
    for cell in nb.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    return nb


def differences(source, target):
    """How the notebook `target` disagrees with its source, a line each; none when it agrees. Runs nothing."""
    if not target.exists():
        return [f"{target.name} is not built yet"]
    nb = nbformat.read(target, as_version=4)
    wanted, found = (
        [(c.cell_type, c.source, c.metadata.get("tags", []), c.get("id")) for c in cells]
        for cells in (stub(read_source(source)).cells, nb.cells)
    )
    lines = [
        f"{target.name}, cell {n}: differs from its source"
        for n, pair in enumerate(zip(wanted, found, strict=False))
        if pair[0] != pair[1]
    ]
    if len(wanted) != len(found):
        lines.append(f"{target.name}: {len(found)} cells, where its source makes {len(wanted)}")
    counts = [c.execution_count for c in nb.cells if c.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        lines.append(f"{target.name}: not run from top to bottom by the build")
    return lines


def execute(nb, folder, progress=None, kernel="python3", environment=None):
    """Run a notebook in place, in `folder`, and return it. Calls `progress()`, if any, after each cell.

    kernel and environment: the kernel's specification and its variables (those of `kernel_environment`).

    Raises BuildError with the cell and its error where one fails, runs for over CELL_TIMEOUT seconds, kills
    the kernel, or is tagged `raises-exception` and raises nothing.
    """
    at = [0]

    def started(cell, cell_index):
        at[0] = cell_index

    client = NotebookClient(
        nb,
        timeout=CELL_TIMEOUT,
        kernel_name=kernel,
        record_timing=False,
        store_widget_state=False,
        extra_arguments=["--log-level=ERROR"],  # else the kernel warns of talking over TCP, which is loopback here
        resources={"metadata": {"path": str(folder)}},
        on_cell_start=started,
        on_cell_executed=lambda **_: progress and progress(),
    )
    try:
        client.execute(env=environment or kernel_environment())
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        cell = nb.cells[at[0]]
        kind = {CellTimeoutError: f"took over {CELL_TIMEOUT} s", DeadKernelError: "killed the kernel"}
        failures = ["\n".join(out.traceback) for out in cell.outputs if out.output_type == "error"]
        report = [f"cell {at[0]} {kind.get(type(error), 'failed')}:", cell.source, *failures]
        raise BuildError("\n\n".join(report)) from None
    for number, cell in enumerate(nb.cells):
        if tagged(cell, "raises-exception") and not any(out.output_type == "error" for out in cell.outputs):
            raise BuildError(f"cell {number} is tagged raises-exception and raised nothing:\n\n{cell.source}")
    return nb


def render(source, folder):
    """Execute one source in `folder` and return its notebook as text. Raises BuildError; writes nothing."""
    nb = stub(read_source(source))
    cells = sum(cell.cell_type == "code" for cell in nb.cells)
    with tqdm(total=cells, desc=source.stem, unit="cell", leave=False, disable=None) as bar:
        try:
            execute(nb, folder, bar.update)
        except BuildError as error:
            raise BuildError(f"{source.name}, {error}") from None
    nbformat.validate(normalise(nb))
    return nbformat.writes(nb) + "\n"


def write(target, text):
    """Write a file, all of it or nothing."""
    draft = target.with_name(target.name + ".draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, target)


def build(source, target):
    """Render one source and write its notebook, all of it or nothing. Returns the seconds that it took."""
    start = time.perf_counter()
    text = render(source, target.parent)
    write(target, text)
    return time.perf_counter() - start


def refresh(source, target, anyway):
    """Build a notebook if it disagrees with its source, or `anyway`; say so, and return whether it was built."""
    wanted = anyway or bool(differences(source, target))
    done = f"built in {build(source, target):.1f} s" if wanted else "unchanged"
    print(f"{source.stem}: {done}", flush=True)
    return wanted


def stamp(source, target):
    """Update what needs no run: text, the set-up cell, the badge. Says so, and returns whether the two now agree."""
    nb = nbformat.read(target, as_version=4)
    before = nbformat.writes(nb)
    done = hosted.stamp(nb, stub(read_source(source)))
    if done and nbformat.writes(nb) != before:
        write(target, nbformat.writes(nb) + "\n")
        print(f"{source.stem}: stamped")
    elif not done:
        print(f"{source.stem}: its code changed, build it", file=sys.stderr)
    return done


def write_for_colab(notebook, folder):
    """Write the variant for Colab of a built notebook into `folder`. Raises BuildError before there is an address."""
    try:
        nb = hosted.for_colab(nbformat.read(notebook, as_version=4))
    except ValueError as error:
        raise BuildError(f"{error}: set Repository in pyproject.toml") from None
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / notebook.name, nbformat.writes(nb) + "\n")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NN_topic", help="notebooks to rebuild, changed or not")
    parser.add_argument("--all", action="store_true", help="rebuild every notebook, changed or not")
    parser.add_argument("--check", action="store_true", help="run nothing; exit 1 if a notebook disagrees")
    parser.add_argument("--stamp", action="store_true", help="run nothing; bring text and set-up cells up to date")
    parser.add_argument("--colab", type=Path, metavar="FOLDER", help="run nothing; write the variants for Colab there")
    parser.add_argument("--folder", type=Path, default=HERE, help="where source/ and the notebooks are (%(default)s)")
    options = parser.parse_args(arguments)

    folder = options.folder
    pairs = {path.stem: (path, folder / f"{path.stem}.ipynb") for path in (folder / "source").glob("*.py")}
    names = sorted({Path(name).stem for name in options.names} or pairs)
    if unknown := [name for name in names if name not in pairs]:
        parser.error(f"no source named {', '.join(unknown)}; there are {', '.join(sorted(pairs))}")
    try:
        if options.check:
            orphans = sorted(path.name for path in folder.glob("*.ipynb") if path.stem not in pairs)
            lines = [line for name in names for line in differences(*pairs[name])]
            lines += [f"{name} has no source" for name in orphans]
            if folder == HERE:
                lines += [f"{path.name} does not say what the notebooks say" for path in ledger.out_of_date()]
            print("\n".join(lines) or f"{len(names)} notebooks agree with their sources")
            return 1 if lines else 0
        if options.stamp:
            done = [stamp(*pairs[name]) for name in names]  # all of them, whatever one says
            return 0 if all(done) else 1
        if options.colab:
            for name in names:
                write_for_colab(pairs[name][1], options.colab)
            return 0
        warm_up()
        anyway = options.all or bool(options.names)
        news = [refresh(*pairs[name], anyway) for name in names if name != ledger.MAP]
        written = ledger.update() if folder == HERE else []
        for path in written:
            print(f"{path.name}: written")
        news = any(news) or bool(written)
        if ledger.MAP in pairs and (news or ledger.MAP in names):
            refresh(*pairs[ledger.MAP], news or anyway)
    except (BuildError, ledger.LedgerError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
