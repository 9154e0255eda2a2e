"""Markdown of the book: anchors, links that do no harm, mathematics that browsers typeset."""

import re
import xml.dom.minidom

import pytest

from docs.book import BookError
from docs.book.markup import Slugs, markdown
from tests.test_readme import anchors


def test_headings_get_githubs_anchors_each_once():
    text = "# What a *notebook* may print\n\n## `p` & q, < 1\n\n## `p` & q, < 1\n"
    found = re.findall(r'id="([^"]*)"', markdown(text, Slugs()))
    assert found[2] == found[1] + "-1"
    assert set(found[:2]) == anchors(text.replace("*", ""))


def test_formulas_become_mathml():
    page = markdown(r"inline $\frac{a}{b}$ and $$\sum_i x_i^2$$ costs 5 \$ < 6", Slugs())
    formulas = [xml.dom.minidom.parseString(text) for text in re.findall(r"<math.*?</math>", page, re.S)]
    assert [bool(tree.getElementsByTagName("mfrac")) for tree in formulas] == [True, False]
    assert [tree.documentElement.getAttribute("display") for tree in formulas] == ["inline", "block"]
    assert "\\" not in page.replace("\\$", "")
    with pytest.raises(BookError, match="left"):
        markdown(r"$\left( x$", Slugs())
    with pytest.raises(BookError, match="nosuch"):
        markdown(r"$\nosuch{x}$", Slugs())


def test_a_link_cannot_run_a_script_and_a_table_scrolls():
    assert "javascript:" not in markdown("[x](javascript:alert(1))", Slugs())
    assert markdown("| a |\n| - |\n| 1 |\n", Slugs()).startswith('<div class="scroll"><table>')


def test_folded_markdown_is_rendered():
    page = markdown("<details><summary>Hint</summary>\n\nUse `x`.\n\n</details>", Slugs())
    assert "<summary>Hint</summary>" in page and "<code>x</code>" in page and "&lt;details" not in page
