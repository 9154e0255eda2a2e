"""Claims: the five verdicts, and that what is printed can be read back, whatever the texts hold."""

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ftcourse.claims import VERDICTS, Claim, read_claims, show_claims

LINE = st.text(st.characters(blacklist_categories=("C", "Zl", "Zp")), min_size=1).map(str.strip).filter(bool)


def claim(held=True, **qualification):
    return Claim("water is wet", "Thales", held, "3 drops of 3", **qualification)


def test_the_five_verdicts():
    found = [claim(), claim(only_if="above 0 °C"), claim(False, outdated_by="ice"), claim(False), claim(None)]
    assert [c.verdict for c in found] == list(VERDICTS)


def test_a_verdict_takes_any_truth_and_no_vote():
    assert claim(torch.tensor(True)).verdict == "holds"
    with pytest.raises(RuntimeError):
        claim(torch.tensor([True, False]))


@pytest.mark.parametrize("text", ["", " a", "a\nb", "a\r\nb", "a\u2028b"])
@pytest.mark.parametrize("name", ["claim", "source", "measured"])
def test_a_text_that_could_not_be_read_back_is_refused(name, text):
    texts = {"claim": "a", "source": "b", "measured": "c"} | {name: text}
    with pytest.raises(ValueError, match=name):
        Claim(held=True, **texts)


def test_a_qualification_that_contradicts_the_test_is_refused():
    with pytest.raises(ValueError, match="nothing to narrow"):
        claim(False, only_if="above 0 °C")
    for held in (True, None):
        with pytest.raises(ValueError, match="not outdated"):
            claim(held, outdated_by="ice")
    with pytest.raises(ValueError, match="nothing to narrow"):
        claim(None, only_if="above 0 °C")
    with pytest.raises(ValueError, match="ends it"):
        claim(True, only_if="(hot): maybe")


@example("so (b): c", "d", "e", "a", True)
@given(LINE, LINE, LINE, LINE | st.just(""), st.booleans())
def test_what_is_printed_reads_back(text, source, measured, because, held):
    assume("): " not in because)
    made = Claim(text, source, held, measured, **{"only_if" if held else "outdated_by": because})
    (read,) = read_claims(f"before\n{made}\nafter")
    assert read == {
        "verdict": made.verdict,
        "because": because,
        "claim": text,
        "source": source,
        "measured": measured,
    }


def test_qualifications_read_back_and_order_is_kept(capsys):
    other = Claim("ice is dry", "Thales", False, "0 drops of 3", outdated_by="thaw")
    show_claims(iter([claim(only_if="above 0 °C"), other]))
    read = read_claims(capsys.readouterr().out)
    assert [(row["verdict"], row["because"]) for row in read] == [
        ("holds under conditions", "above 0 °C"),
        ("outdated", "thaw"),
    ]
    assert [row["claim"] for row in read] == ["water is wet", "ice is dry"]


def test_a_claim_without_a_run_is_neither_held_nor_refuted(capsys):
    show_claims([Claim("ice is hot", "Thales", None, "no thermometer at hand; `measure --ice` reads one")])
    (row,) = read_claims(capsys.readouterr().out)
    assert (row["verdict"], row["because"]) == ("not tested", "")


def test_a_claim_that_comes_twice_is_refused():
    with pytest.raises(ValueError, match="water is wet"):
        show_claims([claim(), claim()])
