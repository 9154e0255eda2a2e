"""Every control of the course in a real JupyterLab and a real browser, by keyboard and by mouse, light and dark.

What shows the notebooks' controls, and the statements needed for it, are one notebook. `make controls` takes first the
three notebooks that have every kind of control between them, then all others, under ipywidgets 8 and 7.7, and breaks
what they rest on. FTKIT_SCREENSHOTS: see test_lab.py.
"""

import os
from pathlib import Path
from textwrap import dedent

import ipywidgets
import nbformat
import pytest

from ftcourse.explorers import Explorer

pytest.importorskip("playwright")

from . import controls, lab
from .needed_cells import control_cells, with_needed_cells

CHROMIUM = lab.find_chromium()
NOTEBOOKS = sorted((lab.ROOT / "notebooks").glob("*.ipynb"))
SEVEN = ipywidgets.__version__.startswith("7.")
# ipywidgets 7 asks MathJax 2 to typeset descriptions once they are shown; with JupyterLab's newer one they stay text.
OF_WIDGETS = ["Cannot read properties of undefined (reading 'Queue')"] if SEVEN else []
WIDTHS = (1000, 700)  # pixels of the window, of which the list of files takes some
QUICK = ("01", "10", "11")  # sliders of floats, of integers and of a list, a menu, a button
RUN = "() => window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)"
THEME = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme}).then(() => true)"
ERRORS = """() => [...window.jupyterapp.shell.currentWidget.content.model.cells]
    .filter(cell => cell.type === 'code').flatMap(cell =>
    (cell.getMetadata('tags') ?? []).includes('raises-exception') ? [] :
    cell.outputs.toJSON().filter(out => out.output_type === 'error').map(out => `${out.ename}: ${out.evalue}`))"""
DRAWN = """count => document.querySelectorAll('.ftkit-explorer').length === count
    && [...document.querySelectorAll('.ftkit-explorer .ftkit-status p')].length === count"""


def read(path):
    return nbformat.read(path, as_version=4)


def gathered(paths) -> tuple[nbformat.NotebookNode, list[type[Explorer]]]:
    """One notebook of the needed cells of several, and the classes of the explorers that it shows, in order."""
    cells, shown = [], []
    for path in paths:
        nb = read(path)
        found = control_cells(nb)
        cells += with_needed_cells(nb, found).cells
        shown += found.values()
    return nbformat.v4.new_notebook(cells=cells, metadata=read(paths[0]).metadata), shown


def driven(opened, paths, first="") -> list[str]:
    """Run the gathered cells in JupyterLab, after the code `first`, and use every control; the faults."""
    folder, page, address, token = opened
    nb, shown = gathered(paths)
    nb.cells.insert(0, nbformat.v4.new_code_cell(first))
    name = f"{paths[0].stem}_{len(paths)}.ipynb"
    nbformat.write(nb, folder / name)
    page.goto(f"{address}/lab/tree/{name}?token={token}&reset")
    page.wait_for_function(lab.IDLE)
    page.evaluate(RUN)
    assert page.evaluate(ERRORS) == []
    page.wait_for_function(DRAWN, arg=len(shown))
    drivers = [controls.Driver(page, explorer) for explorer in page.locator(".ftkit-explorer").all()]
    for driver in drivers:
        driver.drive()
    for theme in ("Light", "Dark"):
        page.evaluate(THEME, f"JupyterLab {theme}")
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 1000})
            page.wait_for_timeout(300)
            for driver in drivers:
                driver.look(f"{theme}, {width} px")
                picture(driver, f"{driver.name}_{theme}_{width}")
    return [fault for driver in drivers for fault in driver.faults]


def picture(driver, name):
    if folder := os.environ.get("FTKIT_SCREENSHOTS"):
        driver.root.screenshot(path=Path(folder) / f"{name}.png")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """(folder, page, address, token) of JupyterLab in a browser."""
    if CHROMIUM is None:
        pytest.skip(f"no browser found: install one of {', '.join(lab.BROWSERS)}, or set FTKIT_CHROMIUM to its path")
    folder = tmp_path_factory.mktemp("controls")
    with lab.running_lab(folder) as (_, address, token), lab.browser_page(CHROMIUM) as page:
        yield folder, page, address, token
        assert page.escaped == []
        assert [error for error in page.errors if error not in OF_WIDGETS] == []


@pytest.mark.controls
def test_each_kind_of_control_works_by_keyboard_and_by_mouse(opened):
    assert driven(opened, [path for path in NOTEBOOKS if path.name.startswith(QUICK)]) == []


@pytest.mark.controls
def test_all_others_work(opened):
    assert driven(opened, [path for path in NOTEBOOKS if not path.name.startswith(QUICK)]) == []


@pytest.mark.controls
def test_what_is_amiss_is_noticed(opened, monkeypatch):
    """The mutation of those above: explorers without what the base class adds to ipywidgets."""
    monkeypatch.setattr(controls, "PATIENCE", 5_000)
    bare = """
        import ftcourse.explorers as explorers
        explorers.ON_THE_PAGE = "<style>.ftkit-explorer :focus-visible { outline: none }</style>"
        explorers.show_whole_labels = lambda controls: setattr(controls[-1].layout, "width", "160px")
    """
    found = "; ".join(driven(opened, [path for path in NOTEBOOKS if path.name.startswith("12")], dedent(bare)))
    for fault in (
        "has no accessible name",
        "the focus cannot be seen",
        "JupyterLab takes its keys",
        "stands beside it",
        "no live region",
        "cut off: 'tokens per GPU'",
        "px to be moved in",
        "its handle cannot be seen",
        "its arrow cannot be seen",
    ):
        assert fault in found, found


def test_every_explorer_that_a_notebook_makes_is_found():
    shown = {made.__name__ for path in NOTEBOOKS for made in control_cells(read(path)).values()}
    assert len(shown) >= 19, shown
