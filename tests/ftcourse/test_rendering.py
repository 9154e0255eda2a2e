"""What slides, handouts and the book share: links, formulas, code and pictures as HTML."""

import base64
import html
import re

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ftcourse.rendering import Renderer, headings, highlighted, is_set_up, markdown, mathml, relinked, render, title_of
from notebooks.hosted import set_up

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><title>a &lt; "b"</title><rect/></svg>'


def test_code_under_a_magic_of_the_ranks_is_highlighted_as_python():
    page = highlighted("%%px\nimport torch  # <b>\n")
    assert '<span class="kn">import</span>' in page and "%%px" in page and "<b>" not in page
    assert "kn" not in highlighted("%%bash\nimport x\n")
    assert '<span class="kn">import</span>' in render([new_code_cell("%%px\nimport torch")], str)


def test_a_formula_that_cannot_be_read_stays_as_it_was_written():
    for wrong, said in ((r"\left( x", "cannot be read"), (r"\nosuch{x}", "nosuch")):
        with pytest.raises(ValueError, match=said):
            mathml(wrong, "inline")
        assert f"<code>{wrong}</code>" in markdown(f"a ${wrong}$ b", Renderer())
    assert "<mfrac>" in markdown(r"$\frac{a}{b}$", Renderer())


def test_the_name_of_a_function_stands_apart_from_its_argument():
    space = "<mi>ln</mi><mspace"
    assert space in mathml(r"\ln 2", "inline") and space in mathml(r"-\ln \frac{1}{2}", "inline")
    assert "<mspace" not in mathml(r"\ln(2) + \mathrm{lr} \cdot x", "inline")


def test_links_keep_what_else_they_have_and_lose_what_leads_nowhere():
    page = "<a class='k' href='a.md?x&amp;y' title=t>one</a> <a href=\"b.md\">the <b>two</b></a>"
    asked = []
    found = relinked(page, lambda href, text: asked.append((href, text)) or ("c&d" if href[0] == "a" else None))
    assert found == "<a class='k' href=\"c&amp;d\" title=t>one</a> the <b>two</b>"
    assert asked == [("a.md?x&y", "one"), ("b.md", "the <b>two</b>")]


def test_a_link_cannot_run_a_script():
    assert "javascript:" not in render([new_markdown_cell("[x](javascript:alert(1))")], lambda target: None)


def test_a_picture_keeps_its_name_and_a_live_control_is_left_out():
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "image/svg+xml": SVG, "text/plain": "p"}
    page = render([new_code_cell("plot()", outputs=[new_output("display_data", view)])], str)
    ((name, data),) = re.findall(r"<img alt='([^']*)' src=\"data:image/svg\+xml;base64,([^\"]*)\"", page)
    assert html.unescape(name) == 'a < "b"' and base64.b64decode(data).decode() == SVG and "model_id" not in page


def test_headings_are_not_the_comments_of_code():
    cell = new_markdown_cell("```python\n# no\n```\n\n# A `title` of $x$\n\n## Part")
    assert headings(cell) == ["A `title` of $x$", "Part"]
    assert title_of(new_notebook(cells=[new_code_cell("# no"), cell])) == "A title of x"
    assert title_of(new_notebook()) == "Notebook"


def test_the_set_up_cell_is_known_as_the_build_writes_it():
    guard = 'import sys\n\nif "google.colab" in sys.modules:\n    ...'
    assert is_set_up(new_code_cell(set_up(guard)))
    assert not is_set_up(new_code_cell("import google.colab")) and not is_set_up(new_markdown_cell(guard))
