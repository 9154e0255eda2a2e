"""Claims: the six verdicts, and that what is printed can be read back, whatever the texts hold."""

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ftcourse.claims import TOPICS, VERDICTS, Claim, Ledger, read_claims
from ftcourse.intervals import Interval

LINE = st.text(st.characters(blacklist_categories=("C", "Zl", "Zp")), min_size=1).map(str.strip).filter(bool)


def claim(held=True, **details):
    return Claim("water is wet", "Thales", held, "3 drops of 3", TOPICS[0], "rain, 3 drops", **details)


def test_the_six_verdicts():
    unclear = Interval(0.1, -0.1, 0.3)
    made = [
        claim(),
        claim(only_if="above 0 °C"),
        claim(False),
        claim(unclear),
        claim(False, outdated_by="ice"),
        claim(None),
    ]
    assert [c.verdict for c in made] == list(VERDICTS)


@pytest.mark.parametrize(
    ("low", "high", "worthwhile", "verdict"),
    [
        (0.1, 0.2, 0.0, "supported"),
        (-0.2, -0.1, 0.0, "refuted"),
        (-0.1, 0.2, 0.0, "inconclusive"),
        (-0.1, 0.2, 0.5, "refuted"),  # whatever the effect is, it is smaller than one that would matter
        (0.1, 0.2, 0.5, "supported"),  # smaller than that, and there
        (-0.1, 0.0, 0.0, "inconclusive"),
    ],
)
def test_an_effect_is_judged_by_its_interval(low, high, worthwhile, verdict):
    assert claim(Interval((low + high) / 2, low, high), worthwhile=worthwhile).verdict == verdict


def test_a_verdict_takes_any_truth_and_no_vote():
    assert claim(torch.tensor(True)).verdict == "supported"
    with pytest.raises(RuntimeError):
        claim(torch.tensor([True, False]))


@pytest.mark.parametrize("text", ["", " a", "a\nb", "a\r\nb", "a\u2028b"])
@pytest.mark.parametrize("name", ["claim", "source", "measured", "model"])
def test_a_text_that_could_not_be_read_back_is_refused(name, text):
    texts = {"claim": "a", "source": "b", "measured": "c", "model": "d"} | {name: text}
    with pytest.raises(ValueError, match=name):
        Claim(held=True, topic=TOPICS[0], **texts)


def test_a_topic_of_nobodys_and_seeds_in_the_model_are_refused():
    with pytest.raises(ValueError, match="give one of child-tuning"):
        Claim("a", "b", True, "c", "weather", "d")
    with pytest.raises(ValueError, match="as `seeds`"):
        Claim("a", "b", True, "c", TOPICS[0], "rain; 3 seeds")


def test_a_qualification_that_contradicts_the_test_is_refused():
    for held in (False, None, Interval(0, -1, 1)):
        with pytest.raises(ValueError, match="nothing to narrow"):
            claim(held, only_if="above 0 °C")
    for held in (True, None, Interval(0, -1, 1)):
        with pytest.raises(ValueError, match="not outdated"):
            claim(held, outdated_by="ice")
    with pytest.raises(ValueError, match="ends it"):
        claim(True, only_if="(hot): maybe")


@example("so (b): c", "d", "e", "f", "a", 1, True)
@given(LINE, LINE, LINE, LINE, LINE | st.just(""), st.integers(0, 20), st.booleans())
def test_what_is_printed_reads_back(text, source, measured, model, because, seeds, held):
    assume("): " not in because and "; " not in model)
    why = {"only_if" if held else "outdated_by": because}
    made = Claim(text, source, held, measured, TOPICS[1], model, seeds, **why)
    (read,) = read_claims(f"before\n{made}\nafter")
    assert read == {
        "verdict": made.verdict,
        "because": because,
        "claim": text,
        "topic": TOPICS[1],
        "source": source,
        "model": model,
        "seeds": str(seeds) if seeds else "",
        "measured": measured,
    }


def test_a_ledger_keeps_order_topic_and_model_and_prints_once(capsys):
    ledger = Ledger("freezing", "ice, 1 kg")
    ledger.add("ice is cold", "Thales", True, "0 °C", seeds=1, only_if="below 0 °C")
    ledger.add("ice is dry", "Thales", False, "0 drops of 3", outdated_by="thaw", model="snow")
    assert capsys.readouterr().out == ""
    ledger.show()
    read = read_claims(capsys.readouterr().out)
    assert [(row["verdict"], row["because"]) for row in read] == [
        ("supported under conditions", "below 0 °C"),
        ("outdated", "thaw"),
    ]
    assert [(row["topic"], row["model"], row["seeds"]) for row in read] == [
        ("freezing", "ice, 1 kg", "1"),
        ("freezing", "snow", ""),
    ]


def test_a_claim_that_comes_twice_is_refused():
    ledger = Ledger("freezing")
    ledger.add("water is wet", "Thales", True, "3 drops")
    with pytest.raises(ValueError, match="water is wet"):
        ledger.add("water is wet", "Anaximander", False, "3 drops")
