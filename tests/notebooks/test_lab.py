"""Notebook 01 in a real JupyterLab and a real browser: it runs, its slider and its button redraw the picture.

FTKIT_CHROMIUM names the browser where it is not on the PATH; FTKIT_SCREENSHOTS a folder to leave pictures in.
"""

import os
import shutil
from pathlib import Path

import psutil
import pytest

from ftcourse.live_ranks.worker import tcp_connections

pytest.importorskip("playwright")

from . import lab

pytestmark = pytest.mark.thorough

NOTEBOOK = lab.ROOT / "notebooks" / "01_gradient_masks.ipynb"
CHROMIUM = lab.find_chromium()
QUIET = 500  # milliseconds without a change, after which a picture counts as drawn
# The stored outputs are cleared first, so that what is looked at afterwards comes from this run.
RUN_ALL = """async () => {
    for (const command of ['clear-all-cell-outputs', 'run-all-cells'])
        await window.jupyterapp.commands.execute('notebook:' + command);
    return true;
}"""
CODE_CELLS = """() => [...window.jupyterapp.shell.currentWidget.content.model.cells]
    .filter(cell => cell.type === 'code')
    .map(cell => ({count: cell.executionCount, source: cell.sharedModel.getSource(),
        tags: cell.getMetadata('tags') ?? [],
        errors: cell.outputs.toJSON().filter(out => out.output_type === 'error').map(out => out.evalue)}))"""
PICTURE = "() => [...document.querySelectorAll('.ftkit-mask-explorer svg')].map(svg => svg.outerHTML).join()"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """JupyterLab over a copy of the notebooks: (process, address, token, folder)."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOK.parent, folder / "notebooks", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    with lab.running_lab(folder) as running:
        yield *running, folder


@pytest.fixture
def page():
    if CHROMIUM is None:
        pytest.skip(f"no browser found: install one of {', '.join(lab.BROWSERS)}, or set FTKIT_CHROMIUM to its path")
    with lab.browser_page(CHROMIUM) as page:
        yield page


def screenshot(page, name):
    if folder := os.environ.get("FTKIT_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def changed(page, before):
    """Wait until the picture is another one and stays so, and return it.

    A drag sends many values; a late picture of one of them must not be taken for the answer to the next control.
    """
    page.wait_for_function(f"before => ({PICTURE})() !== before", arg=before)
    while True:
        drawn = page.evaluate(PICTURE)
        page.wait_for_timeout(QUIET)
        if page.evaluate(PICTURE) == drawn and page.evaluate(lab.IDLE) is not False:
            return drawn


def test_make_lab_listens_on_loopback_alone_and_wants_the_token(server):
    process, address, token, _ = server
    listening = {c.laddr.ip for c in tcp_connections(psutil.Process(process.pid)) if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    assert lab.status_of(f"{address}/api/contents") == 403
    assert lab.status_of(f"{address}/api/contents?token=wrong") == 403
    assert lab.status_of(f"{address}/api/contents?token={token}") == 200
    assert len(token) >= 32


def test_notebook_runs_and_its_controls_redraw_the_picture(server, page):
    _, address, token, folder = server
    # Started on a file, Jupyter takes the file's folder for its root, unless the Makefile says otherwise.
    at_root = lab.status_of(f"{address}/api/contents/{NOTEBOOK.name}?token={token}") == 200
    page.goto(f"{address}/lab/tree/{'' if at_root else 'notebooks/'}{NOTEBOOK.name}?token={token}&reset")
    page.wait_for_function(lab.IDLE)
    listed = page.locator(".jp-DirListing-itemText").all_inner_texts()
    assert listed and all(name.endswith(".ipynb") for name in listed), listed
    # JupyterLab has put the kernel's version into the metadata by now, and saves by itself after two minutes.
    opened = Path(folder, "notebooks", NOTEBOOK.name)
    before = opened.read_bytes(), opened.stat().st_mtime_ns
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save').then(() => true)")
    assert (opened.read_bytes(), opened.stat().st_mtime_ns > before[1]) == (before[0], True)
    screenshot(page, "1_opened")
    assert page.evaluate(RUN_ALL)  # a wanted error does not end it: see ftcourse/expected.py
    page.wait_for_function(f"() => ({CODE_CELLS})().every(cell => cell.count) && ({lab.IDLE})()")
    cells = page.evaluate(CODE_CELLS)
    for cell in cells:
        assert bool(cell["errors"]) == ("raises-exception" in cell["tags"]), cell

    explorer = page.locator(".ftkit-mask-explorer").first
    explorer.locator("svg").first.wait_for()
    explorer.scroll_into_view_if_needed()
    drawn = page.evaluate(PICTURE)
    screenshot(page, "2_ran")

    slider = page.locator(".widget-slider", has=page.get_by_text("reserve_p", exact=True)).first
    handle, readout = slider.get_by_role("slider"), slider.locator(".widget-readout")
    before = float(readout.inner_text())
    handle.focus()
    for _ in range(5):
        handle.press("ArrowRight")
    drawn = changed(page, drawn)
    by_keyboard = float(readout.inner_text())
    assert by_keyboard > before
    screenshot(page, "3_slider_by_keyboard")

    box, knob = slider.locator(".noUi-target").bounding_box(), handle.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(knob["x"] + knob["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], middle, steps=8)
    page.mouse.up()
    drawn = changed(page, drawn)
    assert float(readout.inner_text()) > by_keyboard
    screenshot(page, "4_slider_by_mouse")

    page.get_by_role("button", name="New seed").first.click()
    changed(page, drawn)
    screenshot(page, "5_new_seed")

    assert page.escaped == []
    assert page.errors == []


def test_outside_requests_page_errors_and_dead_controls_are_noticed(page):
    """The mutations of the test above, on a page of our own."""
    page.set_content(
        "<div class='ftkit-mask-explorer'><svg></svg></div><img src='http://example.org/x.png'>"
        "<script>new WebSocket('ws://example.org'); setTimeout(() => { throw new Error('lost'); })</script>"
    )
    page.set_default_timeout(500)
    with pytest.raises(Exception, match="Timeout"):
        changed(page, page.evaluate(PICTURE))
    assert {url.partition(":")[0] for url in page.escaped} == {"http", "ws"}
    assert "lost" in page.errors[0]
    page.evaluate("document.querySelector('svg').setAttribute('width', 1)")
    assert "width" in changed(page, "<svg></svg>")
