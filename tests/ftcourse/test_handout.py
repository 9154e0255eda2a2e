"""Handouts: what is printed, and that the PDF has pages with numbers and text."""

import re
import zlib

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell

from ftcourse import cli, handout

from .test_slides import lesson


def test_hints_are_unfolded_and_links_to_files_are_words():
    page = handout.make_page(lesson())
    assert "<details open><summary>Hint" in page and "<details>" not in page
    assert ".ipynb" not in page and "claims.md" not in page
    assert "<title>A title</title>" in page and "<script" not in page
    assert (
        ">plot<" not in page and ">x0<" in page and 'alt="a red square"' in page and "the secret solution" in page
    )  # main drops it


@pytest.mark.parametrize("missing", ["browser", "notebook", "playwright"])
def test_what_is_missing_is_named(tmp_path, monkeypatch, capsys, missing):
    import sys

    pytest.importorskip("playwright")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FTKIT_CHROMIUM", raising=False)
    if missing == "browser":
        monkeypatch.setenv("PATH", str(tmp_path))
    if missing == "playwright":
        monkeypatch.setitem(sys.modules, "playwright", None)
        monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    else:
        monkeypatch.setattr(handout, "print_pdfs", lambda *_: pytest.fail("began all the same"))
    if missing == "notebook":
        monkeypatch.setattr(handout, "find_chromium", lambda: "chromium")
    assert cli.main(["handout", "99"]) == 2
    said = {"browser": "FTKIT_CHROMIUM", "notebook": "no notebook '99'", "playwright": "pip install playwright"}
    assert said[missing] in capsys.readouterr().err


@pytest.mark.thorough
def test_a_pdf_has_numbered_pages_and_text_that_can_be_selected(tmp_path, monkeypatch, capsys):
    lab = pytest.importorskip("tests.notebooks.lab", reason="needs playwright")
    if not lab.find_chromium():
        pytest.skip("no Chromium")
    monkeypatch.chdir(tmp_path)
    nb = lesson()
    nb.cells += [new_markdown_cell("A last line. " * 300)]
    nbformat.write(nb, "own.ipynb")
    assert cli.main(["handout", "own.ipynb"]) == 0
    assert capsys.readouterr().out == "ftkit-handouts/own.pdf\n"
    pdf = (tmp_path / "ftkit-handouts" / "own.pdf").read_bytes()
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    streams = [inflate(part) for part in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.S)]
    shown = [stream for stream in streams if re.search(rb"\bT[jJ]\b", stream)]
    assert pages >= 2 and len(shown) >= pages  # text operators, not pictures of text
    # A picture that breaks over pages is painted on each of them, and one that is too wide is cut.
    assert b"".join(streams).count(b"1 0 0 rg\n") == 2
    assert b"/ToUnicode" in pdf  # so that it can be selected and searched
    assert b"beginbfchar" in b"".join(streams) or b"beginbfrange" in b"".join(streams)


@pytest.mark.book
@pytest.mark.parametrize("name", ["01_gradient_masks", "06_optimizer_and_schedule", "12_memory"])
def test_pictures_of_a_whole_notebook_fit_a_page(name):
    lab = pytest.importorskip("tests.notebooks.lab", reason="needs playwright")
    nb = nbformat.read(lab.ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    with lab.browser_page(lab.find_chromium()) as page:
        page.set_viewport_size({"width": 665, "height": 990})  # the text of an A4 page, in CSS pixels
        page.set_content(handout.make_page(nb), wait_until="load")
        pictures = page.locator("img")
        boxes = pictures.evaluate_all("all => all.map(i => [i.offsetLeft + i.offsetWidth, i.offsetHeight])")
        assert len(boxes) >= 5
        assert all(right <= 665 and 20 <= height <= 760 for right, height in boxes), boxes


def inflate(part: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(part)
    except zlib.error:
        return b""
