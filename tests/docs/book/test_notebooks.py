"""A notebook as the body of a page: what is folded, marked and described."""

import base64

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from docs.book import BookError
from docs.book.notebooks import body_of
from docs.book.pictures import Pictures

SVG = '<svg width="72pt" height="36pt"{}><!-- loss --><path d="M0 0"/></svg>'
ANSI = "\x1b[31mValueError\x1b[39m: a < b"


def code(source, *outputs, tags=()):
    return new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)})


def shown(data):
    return new_output("execute_result", data)


def body(tmp_path, *cells):
    nbformat.write(new_notebook(cells=list(cells)), tmp_path / "98_x.ipynb")
    return body_of(tmp_path / "98_x.ipynb", Pictures(tmp_path))


def test_machinery_is_folded_and_errors_on_purpose_are_marked(tmp_path):
    error = new_output("error", ename="ValueError", evalue="", traceback=[ANSI])
    page = body(
        tmp_path,
        code('if "google.colab" in sys.modules:\n    pass'),
        code("plot()", tags=["hide-input"]),
        code("x < 1", error, tags=["raises-exception"]),
        code("y", error),
    )
    assert page.count("<details") == 2 and "Set-up, which installs the course on Colab" in page
    assert page.count("An error on purpose") == 1 and page.count("traceback") == 2
    assert '<span class="ansi-red-fg">ValueError</span>: a &lt; b' in page and "\x1b" not in page


def test_pictures_are_files_described_by_the_heading_above(tmp_path):
    png = base64.b64encode(b"png").decode()
    page = body(
        tmp_path,
        new_markdown_cell("# T\n\n## 4 · The `loss`\n\n```\n# no heading\n```"),
        code("a", shown({"image/svg+xml": SVG.format(""), "text/plain": "<Figure>"})),
        code("b", shown({"image/png": png, "text/plain": "<Figure>"})),
        code("c", shown({"text/html": f"<b>x</b>{SVG.format(' aria-label=named')}"})),
    )
    assert 'alt="Figure in “4 · The loss”: loss"' in page and 'alt="Figure in “4 · The loss”"' in page
    assert "&lt;Figure" not in page and "<svg" not in page and "<b>x</b>" in page


def test_a_control_without_states_says_what_it_is(tmp_path):
    data = {
        "image/svg+xml": SVG.format(' aria-label="3 kept"'),
        "text/plain": "XExplorer(p=1): run the cell to move it",
    }
    page = body(tmp_path, code("explorer", shown(data)))
    assert 'alt="3 kept"' in page and "run the cell to move it. This is its first state." in page
    assert "data-control" not in page
    words = {"text/html": "<p>words</p>", "text/plain": data["text/plain"]}
    page = body(tmp_path, code("explorer", shown(words)))
    assert "<p>words</p>" in page and "XExplorer" not in page and "run the cell to move it" in page


def test_what_cannot_be_shown_is_named_by_notebook_and_cell(tmp_path):
    with pytest.raises(BookError, match=r"98_x\.ipynb, cell 1: .*width"):
        body(tmp_path, code("a"), code("b", shown({"image/svg+xml": "<svg></svg>"})))
