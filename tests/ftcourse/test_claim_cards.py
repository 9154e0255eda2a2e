"""Claims as HTML: readable without colour, whole words, and nothing that a sanitiser removes."""

import re
import xml.etree.ElementTree as ET

import pytest

from ftcourse.claim_cards import BADGES, ClaimCards, ClaimsByVerdict, all_claims, badge, card
from ftcourse.claims import VERDICTS

CLAIM = {
    "verdict": "supported under conditions",
    "because": "p < 1",
    "claim": "a & b",
    "topic": "freezing",
    "source": "Thales",
    "model": "rain",
    "seeds": "3",
    "measured": "3 drops",
}


def luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_verdict_has_its_own_sign_colour_and_word():
    assert tuple(BADGES) == VERDICTS
    for column in zip(*BADGES.values(), strict=True):
        assert len(set(column)) == len(VERDICTS)
    for verdict, (sign, colour, _) in BADGES.items():
        assert f"{sign} {verdict}" in badge(verdict)
        assert 1.05 / (luminance(colour) + 0.05) > 5, "white on it"


@pytest.mark.parametrize("shown", [ClaimCards("text", [CLAIM, CLAIM]), ClaimsByVerdict([CLAIM, CLAIM])])
def test_a_card_says_all_and_uses_only_what_sanitisers_leave(shown):
    page = ET.fromstring(f"<div>{shown._repr_html_().replace('<br>', '<br/>')}</div>")
    said = "".join(page.itertext())
    for words in ("(p < 1) a & b", "Measured: 3 drops", "Tested on: rain, 3 seeds", "Source: Thales"):
        assert said.count(words) == 2
    assert {element.tag for element in page.iter()} <= {"div", "span", "b", "br", "a", "p", "details", "summary"}
    assert {key for element in page.iter() for key in element.attrib} <= {"style", "href"}
    assert "break-all" not in shown._repr_html_()


def test_a_card_links_the_notebook_where_it_is_known():
    assert '<a href="04_freezing.ipynb">' in card({**CLAIM, "notebook": "04_freezing"})
    assert (
        "href" not in card(CLAIM)
        and "1 seed<" in card({**CLAIM, "seeds": "1"})
        and "seed" not in card({**CLAIM, "seeds": ""})
    )


def test_claims_are_grouped_by_verdict_and_print_as_counts():
    other = {**CLAIM, "verdict": "refuted", "because": "", "topic": "speed and memory"}
    shown = ClaimsByVerdict([other, CLAIM, other])
    assert repr(shown) == "supported under conditions: 1\nrefuted: 2"
    heads = re.findall(r"<summary[^>]*>(.*?)</summary>", shown._repr_html_())
    assert [re.sub("<[^>]*>", "", head) for head in heads] == [
        "◐ supported under conditions 1 claim",
        "✗ refuted 2 claims",
    ]
    assert repr(ClaimCards("as printed", [CLAIM])) == "as printed"


def test_all_stored_claims_can_be_shown():
    shown = all_claims()
    assert sum(map(len, shown.groups.values())) > 50 and len(shown._repr_html_()) < 150_000
