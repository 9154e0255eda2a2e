"""Links of the book: to pages, to the published repository, or no links; no picture from outside."""

import pytest

from docs.book.links import ROOT, Links, repository
from docs.book.pictures import Pictures

NOTEBOOKS = ROOT / "notebooks"
PAGES = {NOTEBOOKS / "01_a.ipynb": "01_a.html", ROOT / "docs" / "costs.md": "costs.html"}
COLAB = "https://colab.research.google.com/github/a/b/blob/v1/notebooks/01_a.ipynb"


@pytest.fixture
def links(tmp_path):
    return Links(PAGES, Pictures(tmp_path), None)


@pytest.mark.parametrize(
    ("source", "page"),
    [
        ('<a href="01_a.ipynb">x</a>', '<a href="01_a.html">x</a>'),
        ("<a class='k' href='01_a.ipynb#b-c' title='t'>x</a>", "<a class='k' href=\"01_a.html#b-c\" title='t'>x</a>"),
        ('<a href="../docs/costs.md#a">x</a>', '<a href="costs.html#a">x</a>'),
        ('<a href="#a">x</a>', '<a href="#a">x</a>'),
        (f'<a href="{COLAB}">notebook 01</a>', '<a href="01_a.html">notebook 01</a>'),
        (f'<a href="{COLAB}">Open in Colab</a>', f'<a href="{COLAB}">Open in Colab</a>'),
        ('<a href="https://example.org/?a&amp;b">x</a>', '<a href="https://example.org/?a&amp;b">x</a>'),
        ('<a href="../data/card.json">the <b>card</b></a>', "the <b>card</b>"),  # not in the book, not published
        ('<a href="02_b.ipynb">x</a>', "x"),
        ('<a href="../../../etc/passwd">x</a>', "x"),
        ('<img src="https://example.org/badge.svg" alt="a <badge>">', "a &lt;badge&gt;"),
        ('<img src="nowhere.svg" alt="gone">', "gone"),
        ('<img src="data:image/png;base64,AA==" alt="x">', '<img src="data:image/png;base64,AA==" alt="x">'),
    ],
)
def test_a_link_leads_to_the_page_of_what_it_names(links, source, page):
    assert links.rewrite(source, NOTEBOOKS) == page


def test_other_files_are_linked_once_the_repository_is_published(tmp_path):
    links = Links(PAGES, Pictures(tmp_path), "https://host.example/us/ftkit/blob/v1")
    page = links.rewrite('<a href="../data/card.json">x</a> <a href="../../../etc/passwd">y</a>', NOTEBOOKS)
    assert page == '<a href="https://host.example/us/ftkit/blob/v1/data/card.json">x</a> y'


def test_nothing_is_published_under_an_invalid_address():
    assert repository() is None or ".invalid" not in repository()


def test_a_pages_own_picture_is_stored(links, tmp_path):
    page = links.rewrite('<img src="docs/memory.svg" alt="Memory &amp; GPUs">', ROOT)
    (file,) = tmp_path.rglob("*.svg")
    assert f'src="{file.relative_to(tmp_path)}"' in page and 'alt="Memory &amp; GPUs"' in page
