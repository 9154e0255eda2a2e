"""Every control of the course in a real JupyterLab and a real browser, by keyboard and by mouse, light and dark.

The notebooks' cells that show a control, and those that they need, run in one notebook. Those whose cells take long
are left to `make controls`, which also runs all of it under ipywidgets 7.7. FTKIT_SCREENSHOTS: see test_lab.py.
"""

import os
from pathlib import Path

import nbformat
import pytest

from ftcourse.explorers import Explorer

pytest.importorskip("playwright")

from . import controls, lab
from .needed_cells import control_cells, with_needed_cells

CHROMIUM = lab.find_chromium()
NOTEBOOKS = sorted((lab.ROOT / "notebooks").glob("*.ipynb"))
WIDTHS = (1000, 700)  # pixels of the window, of which the list of files takes some
SLOW = ("03", "07", "08", "09")  # their cells train
RUN = "() => window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)"
THEME = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme}).then(() => true)"
ERRORS = """() => [...window.jupyterapp.shell.currentWidget.content.model.cells].flatMap(cell =>
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


def driven(folder, paths, page, address, token) -> list[str]:
    """Run the gathered cells in JupyterLab and use every control, then look again in the dark; the faults."""
    nb, shown = gathered(paths)
    nbformat.write(nb, folder / "controls.ipynb")
    page.goto(f"{address}/lab/tree/controls.ipynb?token={token}&reset")
    page.wait_for_function(lab.IDLE)
    page.evaluate(RUN)
    page.wait_for_function(DRAWN, arg=len(shown))
    assert page.evaluate(ERRORS) == []
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


def test_every_control_works_by_keyboard_and_by_mouse(opened):
    folder, page, address, token = opened
    light = [path for path in NOTEBOOKS if not path.name.startswith(SLOW)]
    assert driven(folder, light, page, address, token) == []
    assert page.escaped == [] and page.errors == []


@pytest.mark.controls
def test_every_control_of_the_slow_notebooks_works(opened):
    folder, page, address, token = opened
    slow = [path for path in NOTEBOOKS if path.name.startswith(SLOW)]
    assert driven(folder, slow, page, address, token) == []
    assert page.escaped == [] and page.errors == []


def test_every_explorer_that_a_notebook_makes_is_found():
    shown = {made.__name__ for path in NOTEBOOKS for made in control_cells(read(path)).values()}
    assert len(shown) >= 19, shown
