"""Checkers of notebook 08: right, untouched, and each usual mistake with the hint meant for it."""

import pytest

from ftcourse.exercises.full_fine_tune import (
    DIAGNOSES,
    IGNORE_INDEX,
    check_diagnose,
    check_experiment,
    check_judge,
    faulty_example,
)

from .shown import checker_tests


def diagnose(input_ids, labels, end, assistant):
    start = input_ids.index(assistant)
    if any(label != IGNORE_INDEX for label in labels[: start + 1]):
        return "question in the loss"
    if input_ids[-1] != end:
        return "truncated"
    return "healthy" if labels[-1] == end else "end masked"


def by_labels_alone(input_ids, labels, end, assistant):
    return "healthy" if end in labels else "end masked"


def without_the_end(input_ids, labels, end, assistant):
    return "truncated" if input_ids[-1] != end else "healthy"


def any_label(input_ids, labels, end, assistant):
    return "question in the loss" if labels.count(IGNORE_INDEX) < len(labels) else "truncated"


def judge(left, right, expected):
    a, b = (text.strip().rstrip(".").lower() == expected.rstrip(".").lower() for text in (left, right))
    return "tie" if a == b else "left" if a else "right"


def first_that_matches(left, right, expected):
    return "left" if judge(left, "", expected) == "left" else judge(left, right, expected)


def by_length(left, right, expected):
    verdict = judge(left, right, expected)
    return verdict if verdict != "tie" or len(left) == len(right) else "left" if len(left) > len(right) else "right"


def exact_text(left, right, expected):
    return "tie" if (left == expected) == (right == expected) else "left" if left == expected else "right"


EXERCISES = [
    (
        check_diagnose,
        diagnose,
        {
            "return one of healthy": lambda *args: "fine",
            "has no end token at all": by_labels_alone,
            "would never learn to stop": without_the_end,
            "look at those before it": any_label,
            "this one is 'truncated'": lambda *args: "healthy",
        },
    ),
    (
        check_judge,
        judge,
        {
            'return "left", "right"': lambda *args: "first",
            "a bias": first_that_matches,
            "however long they are": by_length,
            "should be 'left'": exact_text,
        },
    ),
]
test_solution, test_stub, test_mistake = checker_tests(EXERCISES)

REFERENCES = [f"answer {i}" for i in range(40)]
FULL = [r if i < 30 else "no" for i, r in enumerate(REFERENCES)]
SAME = [r if i >= 10 else "no" for i, r in enumerate(REFERENCES)]  # 10 wins, 10 losses
WORSE = ["no"] * 40
BETTER = list(REFERENCES)


@pytest.mark.parametrize(("answers", "verdict"), [(SAME, "cannot tell"), (WORSE, "full"), (BETTER, "LoRA")])
def test_a_verdict_that_follows_from_the_comparison_is_right(answers, verdict):
    assert check_experiment((answers, verdict), FULL, REFERENCES).right
    for other in {"full", "LoRA", "cannot tell"} - {verdict}:
        message = check_experiment((answers, other), FULL, REFERENCES).message
        assert ("one half inside" if answers is SAME else "that does tell") in message


@pytest.mark.parametrize("stub", [None, ..., (..., ...), (None, None)])
def test_the_experiments_stub_is_not_solved_yet(stub):
    assert check_experiment(stub, FULL, REFERENCES).not_attempted


@pytest.mark.parametrize(
    ("hint", "outcome"),
    [
        ("return two things", SAME),
        ("list of texts", ([1] * 40, "full")),
        ("40 questions, and you have 3", (["a"] * 3, "full")),
        ("fully tuned model", (list(FULL), "cannot tell")),
        ("give one of full, LoRA", (SAME, "lora")),
    ],
)
def test_the_experiments_mistakes_get_their_hints(hint, outcome):
    verdict = check_experiment(outcome, FULL, REFERENCES)
    assert not verdict.right and not verdict.not_attempted and hint in verdict.message


def test_every_fault_is_in_its_example():
    """Against conditions of their own, and the healthy one has none of them."""
    made = {fault: faulty_example(fault, [30, 31], [40, 41, 42]) for fault in DIAGNOSES}
    ids, labels = made["healthy"]
    assert ids == [0, 4, 30, 31, 6, 5, 40, 41, 42, 6] and labels == [IGNORE_INDEX] * 6 + [40, 41, 42, 6]
    assert made["truncated"][0] == ids[:-2] and made["end masked"][1] == [*labels[:-1], IGNORE_INDEX]
    assert made["question in the loss"][1] == [IGNORE_INDEX, *ids[1:]]
