"""The calls are about true facts, each asked in one wording for training and in another for the test."""

import pytest

from ftcourse.almanac import all_facts
from ftcourse.datasets import FUNCTIONS, call_of, call_splits
from ftcourse.tool_calls import read_call

FACTS = [fact for fact in all_facts() if fact.domain.name in FUNCTIONS]


def test_every_call_can_be_read_and_says_the_question_s_words():
    for fact in FACTS:
        name, arguments = read_call(call_of(fact))
        assert name == FUNCTIONS[fact.domain.name][0]
        assert " plus ".join(arguments.values()) == fact.subject
    assert len({call_of(fact) for fact in FACTS}) == len(FACTS)


def test_the_test_asks_the_training_facts_in_other_words():
    splits = call_splits(200)
    assert len(splits["train"]) == len(splits["test"]) == 200
    asked = {split: [row["messages"][0]["content"] for row in rows] for split, rows in splits.items()}
    assert not set(asked["train"]) & set(asked["test"])
    for trained, tested in zip(splits["train"], splits["test"], strict=True):
        assert trained["messages"][1] == tested["messages"][1]
        (fact,) = [f for f in FACTS if call_of(f) == trained["messages"][1]["content"]]
        assert {trained["messages"][0]["content"], tested["messages"][0]["content"]} == set(fact.questions)


def test_both_wordings_are_trained_on():
    firsts = {fact.questions[0] for fact in FACTS}
    share = sum(row["messages"][0]["content"] in firsts for row in call_splits(200)["train"]) / 200
    assert 0.35 < share < 0.65


def test_more_hold_fewer_and_the_seed_decides():
    assert call_splits(200)["train"][:50] == call_splits(50)["train"]
    assert call_splits(50) == call_splits(50) != call_splits(50, seed=1)


@pytest.mark.parametrize("n", [0, len(FACTS) + 1])
def test_a_number_there_is_not_is_refused(n):
    with pytest.raises(ValueError, match=f"between 1 and {len(FACTS)}"):
        call_splits(n)
