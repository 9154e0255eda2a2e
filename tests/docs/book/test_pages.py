"""Which pages there are, in which order, and what stands around their text."""

import re

import pytest

from docs.book.pages import ROOT, Page, index_body, listed, rendered, title_of
from ftcourse.contents import CONTENTS, ROUTES


def test_every_notebook_and_page_of_docs_is_in_the_book_in_the_order_of_the_course():
    pages = listed(ROOT / "notebooks")
    names = [name for topics in CONTENTS.values() for name in topics]
    stems = [page.file.removesuffix(".html") for page in pages]
    assert stems[:2] == ["index", "00_start_here"] and stems[2 : 2 + len(names)] == names
    assert set(stems[2 + len(names) :]) == {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert {page.source for page in pages[1:]} >= set((ROOT / "notebooks").glob("*.ipynb"))


def test_a_notebook_that_is_unknown_or_not_built_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="99_x"):
        listed(ROOT / "notebooks", ("99_x",))
    with pytest.raises(FileNotFoundError, match=r"00_start_here.*make notebooks"):
        listed(tmp_path)


def test_the_index_has_the_promise_every_route_and_every_notebook():
    body = index_body()
    assert title_of(body) == "ftkit: fine-tuning, taken apart" and "make lab" not in body
    assert all(route.name in body and route.purpose in body for route in ROUTES)
    assert all(f'href="{name}.ipynb"' in body for topics in CONTENTS.values() for name in topics)
    assert "`" not in body and "**" not in body


def test_titles_are_escaped_and_pages_lead_to_their_neighbours():
    pages = [Page(f"{name}.html", None, "A & B", f"<{name}>") for name in "abc"]
    text = rendered(pages[1], '<h1 id="x">x &lt;i&gt;</h1><h2 id="s">a <code>b</code> &amp; c</h2>', pages)
    assert "<title>x &lt;i&gt;" in text and "<h2>A &amp; B</h2>" in text and "<b>" not in text
    assert re.findall(r'rel="(?:prev|next)" href="(.)\.html"', text) == ["a", "c"]
    assert '<a href="b.html" aria-current="page">&lt;b&gt;</a>' in text and '<a href="#s">a b &amp; c</a>' in text
    assert "controls.js" not in text and "controls.js" in rendered(pages[0], "<div data-control>", pages)
