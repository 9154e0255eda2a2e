"""The book in a headless browser, opened as files, with the network watched.

The fast tests make a book of an excerpt of one notebook, with a cell of each kind, because axe takes seconds for a
whole one. `pytest -m book tests/docs` opens every page of build/book, which `make book` makes, and moves every control.
FTKIT_CHROMIUM names the browser where it is not on the PATH, FTKIT_SCREENSHOTS a folder to leave pictures in.
"""

import hashlib
import os
import re
from pathlib import Path

import nbformat
import pytest

from docs.book import BookError
from docs.book.__main__ import main, make, write

pytestmark = pytest.mark.thorough

lab = pytest.importorskip("tests.notebooks.lab", reason="needs playwright")
sync_axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")

NOTEBOOKS = lab.ROOT / "notebooks"
FEW = ("13_ddp_to_fsdp",)  # it has cells on ranks, an error, tables and a living control
WHOLE = lab.ROOT / "build" / "book"
CHROMIUM = lab.find_chromium()
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
# What the browser says of a living control: its picture has been loaded, and from where; and what is read aloud.
STATE = """control => { const img = control.querySelector('img');
    return [img.complete && img.naturalWidth > 0, img.src, control.querySelector('.caption').textContent] }"""
KEY = """given => given.tagName === 'BUTTON' ? 'Enter'  // a key that changes it, wherever it stands
    : given.tagName === 'SELECT' ? (given.selectedIndex ? 'ArrowUp' : 'ArrowDown')
    : given.value === given.min ? 'ArrowRight' : 'ArrowLeft'"""


def excerpt(name, folder):
    """Write a short notebook: the beginning, and of each kind of cell or output the first, with the cell above it."""
    nb = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    kept, seen = set(range(3)), set()
    for number, cell in enumerate(nb.cells):
        kinds = {*cell.metadata.get("tags", []), *re.findall(r"^%%\w+|google\.colab", cell.source)}
        for output in cell.get("outputs", []):
            kinds |= {output.output_type, *output.get("data", {})}
            kinds |= set(re.findall(r"^\w+Explorer", output.get("data", {}).get("text/plain", "")))
        if kinds - seen:
            kept |= {number - 1, number}
            seen |= kinds
    nb.cells = [nb.cells[number] for number in sorted(kept)]
    nbformat.write(nb, folder / f"{name}.ipynb")


def digest(folder):
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.*")}


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    for name in FEW:
        excerpt(name, folder)
    return folder


@pytest.fixture(scope="module")
def book(notebooks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    assert write(folder, notebooks, FEW) == []
    return folder


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip(f"no browser found: install one of {', '.join(lab.BROWSERS)}, or set FTKIT_CHROMIUM to its path")
    with lab.browser_page(CHROMIUM) as page:
        page.requested = []
        page.on("request", lambda request: page.requested.append(request.url))
        page.set_default_timeout(60_000)
        yield page


@pytest.fixture
def page(browser):
    """The page; afterwards nothing may have been asked for beyond files, and no script may have failed."""
    browser.requested.clear()
    browser.set_viewport_size(DESKTOP)
    browser.emulate_media(color_scheme="light")
    yield browser
    assert [url for url in browser.requested if not url.startswith(("file://", "data:"))] == []
    assert browser.escaped == [] and browser.errors == []


def opened(page, path, *, size=DESKTOP, scheme="light"):
    page.set_viewport_size(size)
    page.emulate_media(color_scheme=scheme)
    page.goto(path.as_uri())
    return page


def screenshot(page, name):
    if folder := os.environ.get("FTKIT_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def barriers(page, *, contrast=True):
    """What axe calls serious or critical: (rule, the elements' HTML). Without `contrast`, in half of the time."""
    options = {"resultTypes": ["violations"], "rules": {"color-contrast": {"enabled": contrast}}}
    found = sync_axe.Axe().run(page, options=options).response["violations"]
    return [
        (rule["id"], [node["html"][:200] for node in rule["nodes"][:3]])
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]


def check_reading(page, path, sizes_with_contrast=(DESKTOP, PHONE)):
    """Both themes at both widths: no barrier, and nothing wider than the screen."""
    for scheme in ("light", "dark"):
        for size in (DESKTOP, PHONE):
            opened(page, path, size=size, scheme=scheme)
            page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
            assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], (path.name, size)
            assert barriers(page, contrast=size in sizes_with_contrast) == [], (path.name, scheme, size)
            screenshot(page, f"{path.stem}_{scheme}_{size['width']}")


def check_controls(page, path):
    """Move every input of every living control by the keyboard; return how many there were."""
    opened(page, path)
    inputs = page.locator("[data-control] [data-axis]")
    for number in range(inputs.count()):
        given = inputs.nth(number)
        control = given.locator("xpath=ancestor::*[@data-control]")
        loaded, picture, caption = control.evaluate(STATE)
        assert loaded and caption
        given.focus()
        given.press(given.evaluate(KEY))
        page.wait_for_function(
            "([control, before]) => control.querySelector('.caption').textContent !== before",
            arg=[control.element_handle(), caption],
        )
        page.wait_for_function("control => control.querySelector('img').complete", arg=control.element_handle())
        loaded, now, _ = control.evaluate(STATE)
        assert loaded and (now != picture or path.stem == "12_memory"), given.get_attribute("id")
    return inputs.count()


def test_the_same_notebooks_give_the_same_bytes(notebooks, book, tmp_path):
    assert write(tmp_path, notebooks, FEW) == []
    assert digest(tmp_path) == digest(book)


@pytest.mark.parametrize("name", ["index", "costs", *FEW])
def test_pages_are_read_by_everybody(book, page, name):
    # Colours do not depend on the width; the index shows what else a phone has.
    check_reading(page, book / f"{name}.html", (DESKTOP, PHONE) if name == "index" else (DESKTOP,))


def test_barriers_and_dead_controls_are_noticed(book, page, tmp_path):
    """The negative controls of this file's checks, on pages of our own."""
    (tmp_path / "grey.html").write_text(
        "<html lang=en><title>x</title><main><p style='color: #bbb'>pale</p><img src='data:,'></main>"
    )
    opened(page, tmp_path / "grey.html")
    assert {rule for rule, _ in barriers(page)} == {"color-contrast", "image-alt"}
    assert {rule for rule, _ in barriers(page, contrast=False)} == {"image-alt"}
    opened(page, book / "13_ddp_to_fsdp.html")
    page.set_default_timeout(300)
    page.route("**/controls.js", lambda route: route.abort())
    try:
        with pytest.raises(Exception, match="Timeout"):
            check_controls(page, book / "13_ddp_to_fsdp.html")
    finally:
        page.unroute("**/controls.js")
        page.set_default_timeout(60_000)


def test_the_living_control_is_moved_by_the_keyboard(book, page):
    assert check_controls(page, book / "13_ddp_to_fsdp.html") == 1


def test_search_finds_a_section_and_follows_it(book, page):
    opened(page, book / "index.html").keyboard.press("/")
    page.keyboard.type("look into RANKS")
    page.locator("#book-results li").first.wait_for()
    assert "section" in page.locator("#book-found").inner_text()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url("**/13_ddp_to_fsdp.html#*")
    page.keyboard.press("/")
    page.keyboard.type("<img src=x onerror=alert(1)> zzz")
    page.get_by_text("No section has that").wait_for()
    page.keyboard.press("Escape")
    assert page.locator("#book-results").is_hidden()


def test_the_theme_is_chosen_and_remembered(book, page):
    def paper():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    opened(page, book / "index.html", scheme="dark")
    dark = paper()
    page.get_by_label("Theme").select_option("light")
    light = paper()
    assert light != dark
    opened(page, book / "claims.html", scheme="dark")
    assert paper() == light
    page.get_by_label("Theme").select_option("")
    assert paper() == dark


def test_contents_open_on_a_phone(book, page):
    opened(page, book / "index.html", size=PHONE)
    contents, button = page.locator("#book-contents"), page.get_by_role("button", name="Contents")
    assert contents.is_hidden() and button.get_attribute("aria-expanded") == "false"
    button.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    contents.get_by_role("link", name="DDP to FSDP").press("Enter")
    page.wait_for_url("**/13_ddp_to_fsdp.html")


def test_cells_are_shown_for_what_they_are(book):
    page = (book / "13_ddp_to_fsdp.html").read_text()
    assert page.count("An error on purpose") == 1 and "RankError" in page
    assert '%%px\n</span><span class="kn">import</span>' in page
    assert "<summary>Set-up, which installs the course on Colab</summary>" in page
    assert "<summary>Show the code</summary>" in page and "<summary>Solution</summary>" in page
    assert page.count("Exercise: solve it in Jupyter") == 1
    assert 'href="12_memory.html"' not in page and 'rel="prev" href="index.html"' in page


def test_a_folder_that_is_no_book_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BookError, match="--output"):
        make(tmp_path, NOTEBOOKS, FEW)
    assert main(["--output", str(tmp_path / "new"), "99_nothing"]) == 1
    assert "99_nothing" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.book
def test_every_page_of_the_whole_book(page):
    paths = sorted(WHOLE.glob("*.html"))
    assert len(paths) > 20, "make book makes it"
    for path in paths:
        check_reading(page, path, (DESKTOP, PHONE) if path.stem == "index" else (DESKTOP,))


@pytest.mark.book
def test_every_control_of_the_whole_book(page):
    moved = {path.stem: check_controls(page, path) for path in sorted(WHOLE.glob("*.html"))}
    assert {name: count for name, count in moved.items() if count} == {
        "01_gradient_masks": 2,
        "04_freezing": 1,
        "12_memory": 8,
        "13_ddp_to_fsdp": 1,
    }
