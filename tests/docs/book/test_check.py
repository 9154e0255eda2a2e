"""The check of a built book: green for a good page, and red for each fault."""

import pytest

from docs.book.check import faults

GOOD = (
    '<a href="b.html#here">b</a> <a href="#me" id="me">me</a> <a href="https://example.org">out</a>'
    '<img src="assets/x.svg" alt="a curve"><img src="data:image/png;base64,AA==" alt="dot"><link href="assets/x.css">'
)
NBCONVERTS_ALT = "No description has been provided for this image"
FAULTS = [
    ('<a href="c.html">c</a>', "links to c.html, which is no page"),
    ('<a href="b.html#there">b</a>', "links to b.html#there, where nothing has that id"),
    ('<img src="assets/x.svg">', "a picture without alternative text: assets/x.svg"),
    ('<img src="assets/x.svg" alt=" ">', "a picture without alternative text: assets/x.svg"),
    (f'<img src="assets/x.svg" alt="{NBCONVERTS_ALT}">', "a picture without alternative text: assets/x.svg"),
    ('<img src="https://example.org/x.svg" alt="x">', "loads https://example.org/x.svg from outside"),
    ('<script src="//example.org/x.js"></script>', "loads //example.org/x.js from outside"),
    ('<link rel="stylesheet" href="https://example.org/x.css">', "loads https://example.org/x.css from outside"),
    ('<p style="background: url(https://example.org/y.png)">x</p>', "loads https://example.org/y.png from outside"),
    ('<img src="assets/y.svg" alt="x">', "loads assets/y.svg, which is not there"),
    ('<p id="a"></p><p id="a"></p>', "two elements with the id a"),
    ('<svg width="1" height="1"></svg>', "an SVG inside of the page"),
    ('<iframe src="b.html"></iframe>', "a <iframe>"),
    ('<p onclick="x()">x</p>', "a script in onclick= of <p>"),
]


def book(folder, text):
    (folder / "assets").mkdir()
    (folder / "assets" / "x.svg").write_text("<svg/>")
    (folder / "assets" / "x.css").write_text("p { color: red }")
    (folder / "a.html").write_text(text)
    (folder / "b.html").write_text('<p id="here">x</p>')
    return folder


def test_a_good_book_has_no_faults(tmp_path):
    assert faults(book(tmp_path, GOOD)) == []


@pytest.mark.parametrize(("text", "named"), FAULTS)
def test_each_fault_is_found_and_named(tmp_path, text, named):
    (found,) = faults(book(tmp_path, GOOD + text))
    assert found.startswith(f"a.html: {named}")


def test_a_style_sheet_that_loads_from_outside_is_found(tmp_path):
    folder = book(tmp_path, GOOD)
    (folder / "assets" / "y.css").write_text("@import 'https://example.org/a.css'; a { background: url(b.png) }")
    assert faults(folder) == ["y.css: loads https://example.org/a.css from outside"]
