"""Slides: how a notebook is divided, and that the page turns, fits and asks nothing from outside."""

import re
import sys
import types

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ftcourse import cli, slides
from ftcourse.svg import picture_html

SVG = '<svg xmlns="http://www.w3.org/2000/svg" aria-label="{}" width="600" height="{}"><rect fill="red" {}/></svg>'
SQUARE = SVG.format("a red square", 600, 'width="600" height="600"')
TALL = SVG.format("a tall figure", 3000, 'width="600" height="3000"')
# Of a picture: its edges as shares of the window's, and its proportions over those that it was drawn with.
BOX = """img => { const { left, right, bottom, width, height } = img.getBoundingClientRect();
    return [left / innerWidth, right / innerWidth, bottom / innerHeight,
        width / height / (img.naturalWidth / img.naturalHeight)] }"""
LONG = "\n".join(f"x{n} = {n}" for n in range(slides.FOLD_LINES + 1))


def tagged(cell, *tags):
    cell.metadata["tags"] = list(tags)
    return cell


def lesson():
    drawn = new_output("execute_result", {"image/svg+xml": SQUARE, "text/plain": "picture"})
    stored = new_output("execute_result", {"text/html": picture_html(TALL), "text/plain": "picture"})  # as `show` does
    return new_notebook(
        cells=[
            new_markdown_cell("# A `title`\n\nHello.\n\n## Part < one\n\n```python\n# no heading\n```"),
            new_code_cell("1 + 1", outputs=[new_output("execute_result", {"text/plain": "2"})]),
            new_markdown_cell(
                "Text after code. [next](02_b.ipynb), [page](../docs/claims.md), [far](https://example.org)"
            ),
            tagged(new_code_cell("plot()", outputs=[drawn]), "hide-input"),
            new_markdown_cell("### Exercise"),
            tagged(new_code_cell(LONG), "exercise"),
            tagged(new_markdown_cell("<details><summary>Hint</summary>\n\nThink.\n\n</details>"), "hint"),
            tagged(new_markdown_cell("the secret solution"), "solution"),
            new_markdown_cell("## Long\n\n" + "Many words of prose. " * 400),
            new_code_cell(LONG),
            new_code_cell("import torch"),
            new_markdown_cell("What to notice."),
            new_markdown_cell("## Next"),
            tagged(new_code_cell("show()", outputs=[stored]), "hide-input"),
        ]
    )


def test_headings_and_text_between_code_and_code_start_slides():
    found = [(slide.title, slide.continued, len(slide.cells)) for slide in slides.divide(lesson())]
    assert found == [
        ("A title", False, 1),
        ("Part < one", False, 2),
        ("Part < one", True, 2),
        ("Exercise", False, 3),  # with its hint
        ("Long", False, 4),  # with the text that says what to notice
        ("Next", False, 2),
    ]


def test_code_is_folded_where_it_is_long_or_hidden_and_never_in_an_exercise():
    page = slides.make_page(lesson(), "01_a")
    bodies = page.split('<section class="slide"')[1:]
    assert [body.count('<details class="code">') for body in bodies] == [0, 0, 1, 0, 2, 1]
    assert f"Code, {slides.FOLD_LINES + 1} lines" in bodies[4] and "Code, 1 line<" in bodies[4]
    assert "Code, 1 line<" in bodies[2] and "<details" not in bodies[1]
    assert "the secret solution" not in page and "Think." in bodies[3]
    assert 'alt="a red square"' in bodies[2] and "Part &lt; one" in bodies[1]


def test_links_lead_to_slides_or_outside_and_others_are_words():
    page = slides.make_page(lesson(), "01_a")
    assert '<a href="02_b.slides.html">next</a>' in page
    assert re.search(r'<a href="https://example.org"[^>]*>far</a>', page)
    assert "claims.md" not in page and ", page," in page


def test_formulas_are_typeset_or_shown_as_they_were_written(monkeypatch):
    nb = new_notebook(cells=[new_markdown_cell("# Cost $x^2$\n\n$$p < 1$$ `$HOME`\n\n```bash\necho $PWD/a $PWD\n```")])
    monkeypatch.setitem(sys.modules, "latex2mathml", types.ModuleType("latex2mathml"))
    monkeypatch.setitem(sys.modules, "latex2mathml.converter", None)
    page = slides.make_page(nb, "01_a")
    assert "<code>x^2</code>" in page and "<code>p &lt; 1</code>" in page
    assert "$HOME" in page and page.count("$PWD") == 2  # no formulas
    converter = types.ModuleType("latex2mathml.converter")
    converter.convert = lambda latex, display: f'<math display="{display}">{latex}</math>'
    monkeypatch.setitem(sys.modules, "latex2mathml.converter", converter)
    page = slides.make_page(nb, "01_a")
    assert '<math display="inline">x^2</math>' in page and '<math display="block">p &lt; 1</math>' in page


def test_the_page_loads_nothing():
    """Links aside, no address is in it."""
    page = re.sub(r"base64,[^\"]+", "", slides.make_page(lesson(), "01_a"))
    assert re.findall(r"https?://[^\s\"'<]+", page) == ["https://example.org"]
    assert not re.search(r"<script[^>]+src|<link\b|@import|url\(", page)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["99"], "no notebook '99'"), (["README.md"], "README.md"), (["folder"], "no notebook 'folder'")],
)
def test_what_is_no_notebook_is_named(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("no notebook")
    (tmp_path / "folder").mkdir()
    assert cli.main(["slides", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.thorough
def test_in_a_browser_slides_turn_fit_and_ask_nothing_from_outside(tmp_path, monkeypatch, capsys):
    lab = pytest.importorskip("tests.notebooks.lab", reason="needs playwright")
    if not (chromium := lab.find_chromium()):
        pytest.skip("no Chromium")
    monkeypatch.chdir(tmp_path)
    nbformat.write(lesson(), "own.ipynb")
    assert cli.main(["slides", "own.ipynb"]) == 0
    assert capsys.readouterr().out == "ftkit-slides/own.slides.html: 6 slides\n"
    with lab.browser_page(chromium) as page:
        page.goto((tmp_path / "ftkit-slides" / "own.slides.html").as_uri())
        number = lambda: page.locator("#place").inner_text()  # noqa: E731
        shown = page.locator(".slide.now")
        assert number() == "1 / 6" and shown.count() == 1
        for key, place in (("ArrowRight", 2), (" ", 3), ("End", 6), ("PageDown", 6), ("ArrowLeft", 5), ("Home", 1)):
            page.keyboard.press(key)
            assert number() == f"{place} / 6", key
        page.get_by_label("Next slide").click()
        page.goto(page.url.partition("#")[0] + "#3")
        assert number() == "3 / 6"
        for place in (3, 6):  # both ways to store a picture
            page.goto(page.url.partition("#")[0] + f"#{place}")
            left, right, bottom, ratio = page.locator(".now img").evaluate(BOX)
            assert 0 < left < right <= 1 and bottom <= 1 and ratio == pytest.approx(1, abs=0.02), place
            assert shown.evaluate("s => s.scrollHeight <= s.clientHeight && s.scrollWidth <= s.clientWidth")
        page.goto(page.url.partition("#")[0] + "#3")
        page.keyboard.press("c")
        page.get_by_role("dialog").get_by_text("Exercise").click()
        assert number() == "4 / 6" and not page.get_by_role("dialog").is_visible()
        assert shown.evaluate("s => parseFloat(s.style.fontSize)") > 20
        page.keyboard.press("ArrowRight")  # too long for any letters: it scrolls, and can be read
        assert "scrolls" in shown.get_attribute("class")
        assert shown.evaluate("s => parseFloat(s.style.fontSize)") >= 14
        page.keyboard.press("ArrowDown")
        assert number() == "5 / 6" and shown.evaluate("s => s.scrollTop") > 0
        assert page.escaped == [] and page.errors == []


@pytest.mark.book
@pytest.mark.parametrize("name", ["01_gradient_masks", "06_optimizer_and_schedule", "12_memory"])
def test_pictures_of_a_whole_notebook_fit_their_slides(tmp_path, name):
    lab = pytest.importorskip("tests.notebooks.lab", reason="needs playwright")
    nb = nbformat.read(lab.ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    (tmp_path / "slides.html").write_text(slides.make_page(nb, name), encoding="utf-8")
    with lab.browser_page(lab.find_chromium()) as page:
        page.set_viewport_size({"width": 1280, "height": 720})
        page.goto((tmp_path / "slides.html").as_uri())
        seen = 0
        for number in range(1, page.locator(".slide").count() + 1):
            shown = page.locator(".slide.now")
            scrolls = "scrolls" in shown.get_attribute("class")
            for left, right, bottom, ratio in shown.locator("img").evaluate_all(f"all => all.map({BOX})"):
                seen += 1
                assert 0 <= left < right <= 1 and (bottom <= 1 or scrolls), number
                assert ratio == pytest.approx(1, abs=0.02), number
            page.keyboard.press("PageDown")
        assert seen >= 5
        assert page.escaped == [] and page.errors == []
