"""What stands in a page of matplotlib's SVG: rounded, numbered, named, and nothing that only the machine decides."""

import base64
import re
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot

matplotlib.use("agg")

from ftcourse import svg as module
from ftcourse.plots import figure_svg, new_axes
from ftcourse.svg import FONTS, SVG, picture_html, rounded, tidy_svg

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 72 36"'
PICTURE = f"""<?xml version="1.0"?>
{HEAD} width="72pt" height="36pt" version="1.1">
 <metadata><a/></metadata>
 <defs><style type="text/css">*{{stroke-linejoin: round}}</style></defs>
 <g id="figure_1">
  <g id="patch_1"><path d="M 0 36 L 72 36 z" style="fill: none"/></g>
  <g id="axes_1">
   <g clip-path="url(#pA)"><path d="M 10.00123 20.5 \nL 30.000001 40"
    style="fill: none; stroke: #0072b2; opacity: 0.35"/></g>
   <g clip-path="url(#pB)"><path d="M 1 2 \nL 3 4" style="fill: url(#hX); stroke: #0072b2"/></g>
   <g id="text_1"><text style="font-size: 10px; font-family: 'DejaVu Sans'" x="5.126" y="6"
    transform="rotate(-0 5.126 6)">two  words</text></g>
  </g>
 </g>
 <defs>
  <clipPath id="pA"><rect x="1.0000000001" y="2" width="3" height="4"/></clipPath>
  <clipPath id="pB"><rect x="1" y="2" width="3" height="4"/></clipPath>
 </defs>
 <defs><pattern id="hX" width="72" height="72"><path d="M 0 0"/></pattern></defs>
</svg>"""


def draw(wobble: float = 0.0):
    """A picture with clips, hatches, markers, alpha and a logarithmic axis; `wobble` moves what a solver might."""
    pyplot.close("all")
    figure, (left, right) = new_axes(6, 2.5, columns=2)
    left.plot([1, 2, 3], [1, 10, 100], "-o", label="rising", alpha=0.5)
    left.set(yscale="log", title="two  words", xlabel="step", ylabel="loss (nats)")
    right.bar(["a", "b"], [1, 2], hatch="//", edgecolor="white")
    right.imshow(np.eye(2), extent=(0, 1, 0, 1), aspect="auto")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for ax in (left, right):
        ax.set_position([place + wobble for place in ax.get_position().bounds])
    return figure


def test_powers_of_ten_are_nothing_but_their_letters():
    texts = re.findall(r"<text[^>]*>(.*?)</text>", figure_svg(draw()), re.DOTALL)
    assert any(words.startswith("<tspan") for words in texts)
    assert not [words for words in texts if re.match(r"\s", words)]


def test_one_element_with_a_name_a_card_and_text_that_is_text():
    root = ET.fromstring(tidy_svg(PICTURE, 'a < "b" & c'))
    assert (root.get("role"), root.get("aria-label"), root.get("font-family")) == ("img", 'a < "b" & c', FONTS)
    assert (root.get("viewBox"), root.get("width"), root.get("height")) == ("0 0 72 36", "96", "48")
    card = root[0]
    assert card.tag == f"{{{SVG}}}rect" and card.get("fill") == "#ffffff"
    (text,) = root.iter(f"{{{SVG}}}text")
    assert (
        text.text == "two\N{NO-BREAK SPACE}\N{NO-BREAK SPACE}words"
        and text.get("style") == "font-size:10px"
        and "transform" not in text.attrib
    )
    assert text.get("x") == "5.13"
    assert not {"metadata", "style"} & {element.tag.partition("}")[2] for element in root.iter()}
    assert ET.fromstring(tidy_svg(PICTURE, "a", background=None))[0].tag != card.tag


def test_coordinates_are_rounded_equal_clips_are_one_and_nothing_empty_is_left():
    text = tidy_svg(PICTURE, "a")
    assert 'd="M10 20.5L30 40"' in text and "opacity:.35" in text
    root = ET.fromstring(text)
    assert len(list(root.iter(f"{{{SVG}}}clipPath"))) == 1
    clips = [element.get("clip-path") for element in root.iter() if element.get("clip-path")]
    assert len(clips) == 2 and len(set(clips)) == 1
    assert not [element for element in root.iter(f"{{{SVG}}}g") if not len(element) or not element.attrib]
    assert "fill:none" not in text.replace("fill:none;stroke", "")  # the figure's own background


def test_ids_are_numbered_and_differ_between_pictures():
    one, other = tidy_svg(PICTURE, "a"), tidy_svg(PICTURE.replace("40", "41"), "a")
    ids = [set(re.findall(r' id="([^"]+)"', text)) for text in (one, other)]
    assert len(ids[0]) == len(ids[1]) == 2 and not ids[0] & ids[1]
    for text, own in zip((one, other), ids, strict=True):
        assert set(re.findall(r"url\(#([^)]+)\)", text)) == own
    renamed = PICTURE.replace("pA", "q17").replace("hX", "q18")
    assert tidy_svg(renamed, "a") == one, "what matplotlib calls them does not matter"


@pytest.mark.parametrize("wobble", [3e-13, -3e-13])
def test_the_last_digits_of_a_layout_change_nothing(wobble, monkeypatch):
    assert figure_svg(draw(wobble)) == figure_svg(draw())
    monkeypatch.setattr(module, "DECIMALS", 6)  # the mutation: as matplotlib rounds
    assert figure_svg(draw(1e-7)) != figure_svg(draw())


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.5, ".5"), (-0.5, "-.5"), (10.0, "10"), (100.0, "100"), (-0.001, "0"), (1.234, "1.23"), (0.05, ".05"), (0, "0")],
)
def test_a_number_is_as_short_as_it_can_be(number, text):
    assert rounded(number) == text


def test_halves_and_eighths_round_alike_from_both_sides():
    for eighths in range(9):
        assert rounded(eighths / 8 + 1e-12) == rounded(eighths / 8 - 1e-12) == rounded(eighths / 8)


def test_what_is_drawn_survives(tmp_path):
    text = figure_svg(draw(), title="t")
    root = ET.fromstring(text)
    words = ["".join(element.itertext()) for element in root.iter(f"{{{SVG}}}text")]
    assert {"two\N{NO-BREAK SPACE}\N{NO-BREAK SPACE}words", "step", "loss (nats)", "a", "b"} <= set(words)
    assert "data:image/png;base64," in text and "<pattern" in text and "<use" in text
    targets = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {a or b for a, b in targets} == set(re.findall(r' id="([^"]+)"', text))


def test_an_image_carries_the_picture_and_its_name():
    svg = tidy_svg(PICTURE, 'a < "b"')
    image = ET.fromstring(picture_html(svg).replace(">", "/>"))
    assert image.get("alt") == 'a < "b"' and "max-width:100%" in image.get("style")
    kind, _, data = image.get("src").partition(",")
    assert kind == "data:image/svg+xml;base64" and base64.b64decode(data).decode() == svg
