"""The blind form: nothing names a model before the end, sides are drawn, buttons count for the right model."""

import pytest

from ftcourse.evaluation import Preference
from ftcourse.explorers.answers import blind_form

QUESTIONS = [f"question {i}?" for i in range(12)]
REFERENCES = [f"answer {i}" for i in range(12)]
# The first model is exact where i is even, the second where i is a multiple of 3; both at 0 and 6.
FIRST = [r if i % 2 == 0 else f"first {i}" for i, r in enumerate(REFERENCES)]
SECOND = [r if i % 3 == 0 else f"second {i}" for i, r in enumerate(REFERENCES)]


def exact(question, left, right, reference):
    if (left == reference) == (right == reference):
        return "tie"
    return "left" if left == reference else "right"


def form(**details):
    return blind_form(QUESTIONS, {"model one": FIRST, "model two": SECOND}, REFERENCES, **details)


def test_a_rule_that_presses_the_buttons_counts_for_the_right_model():
    blind = form()
    assert blind.identical == 2 and len(blind.pairs) == 10
    blind.judge_rest(exact)
    # Exact in the first alone: 2, 4, 8, 10. In the second alone: 3, 9. In neither: 1, 5, 7, 11.
    assert blind.done and blind.result == Preference(4, 2, 4)
    assert "model one against model two: 4 wins, 2 losses, 4 ties" in blind.picture.value
    assert {left for _, left in blind.pairs} == {0, 1}  # or "left" would have been the first model throughout


def test_the_form_is_blind_until_the_end_and_goes_back():
    blind = form(seed=1)
    for _ in blind.pairs:
        assert "model" not in blind.picture.value
        question, left, right, reference = blind.shown()
        assert all(text in blind.picture.value for text in (question, left, right, reference))
        blind.buttons["left"].click()
    assert "model one" in blind.picture.value and blind.result.ties == 0
    assert 0 < blind.result.wins < 10
    blind.buttons["tie"].click()  # nothing is left to judge
    assert len(blind.judged) == 10
    blind.buttons["undo"].click()
    assert "model" not in blind.picture.value and repr(blind).startswith(
        "BlindForm(9 of 10 pairs judged): run the cell"
    )


def test_order_and_sides_come_from_the_seed():
    assert form().pairs == form().pairs != form(seed=1).pairs
    assert form(at_most=3).pairs == form().pairs[:3]


def test_answers_are_escaped_and_a_stored_notebook_shows_the_first_pair():
    blind = blind_form(["<q>"], {"a": ["<b>x</b>"], "b": ["y"]}, ["&"])
    assert "<b>x" not in blind.picture.value and "&lt;b&gt;x" in blind.picture.value
    assert "&lt;q&gt;" in blind._repr_mimebundle_()["text/html"]


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="two models, and there are 1"):
        blind_form(["q"], {"a": ["x"]}, ["y"])
    with pytest.raises(ValueError, match="equally long"):
        blind_form(["q"], {"a": ["x"], "b": []}, ["y"])
    with pytest.raises(KeyError):
        form().press("both")
