"""Every notebook of the course: it is what its source says, has every part, is solvable, builds twice alike.

What the notebooks print is compared cell by cell by `pytest --nbval notebooks`, which also runs the solutions of their
exercises; here is everything else.
"""

import subprocess
from pathlib import Path

import nbformat
import pytest

import build
from tests import ROOT

from . import anatomy

NOTEBOOKS = ROOT / "notebooks"
MAP = "00_start_here"
NAMES = sorted(path.stem for path in (NOTEBOOKS / "source").glob("*.py"))


def source(name):
    return NOTEBOOKS / "source" / f"{name}.py"


def target(name):
    return NOTEBOOKS / f"{name}.ipynb"


def to_rebuild():
    """Notebook 01 and those that differ from the last commit; where there is no git, a fixed pair."""
    command = ["git", "status", "--porcelain", "--untracked-files=all", "--", "*.ipynb"]
    try:
        listed = subprocess.run(command, cwd=NOTEBOOKS, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return [name for name in NAMES if name[:2] in ("00", "01")]
    changed = {Path(line[3:].strip('"')).stem for line in listed.splitlines()}
    return [name for name in NAMES if name in changed or name.startswith("01")]


@pytest.mark.thorough
@pytest.mark.parametrize("name", to_rebuild())
def test_solved_notebook_runs_and_every_checker_says_right(name, record_property):
    """The whole of it. Of every notebook, notebooks/conftest.py runs the solved exercises."""
    record_property("solved notebook", name)
    nb = build.solve(build.read_source(source(name)))
    build.execute(nb, NOTEBOOKS)
    for cell in nb.cells:
        if build.tagged(cell, "exercise"):
            assert set(anatomy.verdicts(cell)) == {"Right"}, f"{cell.source}\n\n{cell.outputs}"


@pytest.mark.parametrize("name", NAMES)
def test_notebook_agrees_with_its_source(name):
    assert build.differences(source(name), target(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_notebook_has_every_part(name):
    nb = nbformat.read(target(name), as_version=4)
    found = anatomy.violations(nb, NOTEBOOKS, is_map=name == MAP)
    assert found == []


def test_every_notebook_has_a_source():
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == NAMES


@pytest.mark.thorough
@pytest.mark.parametrize("name", to_rebuild())
def test_two_builds_give_the_same_bytes(name):
    first, second = (build.render(source(name), NOTEBOOKS) for _ in range(2))
    assert first == second
