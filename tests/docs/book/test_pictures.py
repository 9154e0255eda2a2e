"""Pictures of the book: one file for equal ones, and an alternative text for each."""

import base64
import re
import xml.dom.minidom

import matplotlib
import pytest

matplotlib.use("agg")

from docs.book import BookError
from docs.book.pictures import Pictures, stored_name
from ftcourse.plots import figure_svg, new_axes

PLAIN = '<svg width="72pt" height="36pt" viewBox="0 0 72 36"{}><path d="M0 0"/></svg>'


def curve(title=None):
    figure, ax = new_axes()
    ax.plot([1, 2, 3])
    ax.set(title="Loss by step", xlabel="optimizer step")
    return figure_svg(figure, title=title)


@pytest.fixture
def pictures(tmp_path):
    return Pictures(tmp_path)


def test_the_name_that_a_picture_carries_is_its_alternative_text(pictures):
    assert pictures.add(curve("a & b fall"), "x").alt == "a & b fall"
    titled = PLAIN.format("").replace("<path", "<title id='t'>one &lt; two</title><path")
    assert pictures.add(titled, "x").alt == "one < two"


def test_one_without_a_name_is_described_by_its_place_and_its_words(pictures):
    unnamed = re.sub(r' aria-label="[^"]*"', "", curve())
    alt = pictures.add(unnamed, "4 · Loss").alt
    assert alt == "Figure in “4 · Loss”: optimizer step; Loss by step"  # without the numbers of the axes
    assert pictures.add(PLAIN.format(""), "5").alt == "Figure in “5”"


def test_equal_pictures_are_one_small_file(pictures, tmp_path):
    first, second = pictures.add(curve("one"), "x"), pictures.add(curve("two"), "x")
    assert first.src == second.src and first.alt != second.alt
    (file,) = tmp_path.rglob("*.svg")
    text = file.read_text()
    assert xml.dom.minidom.parseString(text).documentElement.getAttribute("xmlns")
    assert "<!--" not in text and "metadata" not in text and len(text) < len(curve("one"))
    other = curve("one").replace("<path", '<path class="x"', 1)
    assert pictures.add(other, "x").src != first.src


def test_sizes_are_css_pixels_and_needed(pictures):
    picture = pictures.add(PLAIN.format(""), "x")
    assert (picture.width, picture.height) == (96, 48)
    with pytest.raises(BookError, match="“here”"):
        pictures.add("<svg><path/></svg>", "here")
    with pytest.raises(BookError, match="“here”"):
        pictures.add("no picture", "here")


def test_pictures_inside_of_html_are_lifted_out(pictures):
    label = ' aria-label="a &quot;b&quot;"'
    page = pictures.lift(f"<p>x</p>{PLAIN.format(label)}<p>y</p>", "x")
    assert "<svg" not in page and page.startswith("<p>x</p><img") and page.endswith("<p>y</p>")
    assert 'alt="a &quot;b&quot;"' in page


def test_pictures_that_are_stored_as_data_become_files_too(pictures, tmp_path):
    data = base64.b64encode(PLAIN.format("").encode()).decode()
    page = pictures.lift(f'<div><img alt="a &amp; b" style="x" src="data:image/svg+xml;base64,{data}"></div>', "x")
    (file,) = tmp_path.rglob("*.svg")
    assert f'src="{file.relative_to(tmp_path)}"' in page and 'alt="a &amp; b"' in page and "data:" not in page
    assert stored_name({"text/html": page}) == "a & b"
    assert stored_name({"image/svg+xml": curve("named")}) == "named"
