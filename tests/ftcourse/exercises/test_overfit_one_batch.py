"""The checkers of notebook 07: a solution is right, a stub "Not solved yet", a mistake gets the hint meant for it."""

import math
from collections import Counter, defaultdict

import pytest

from ftcourse.exercises.overfit_one_batch import (
    CAUSES,
    END_MASKED,
    LR_TOO_HIGH,
    LR_TOO_LOW,
    OTHER_ROWS,
    TOO_LITTLE_TRAINS,
    check_diagnoses,
    check_loss_floor,
    plant_unknown_bugs,
)
from ftkit.batching import pad, read_rows
from ftkit.conversations import find_chat
from ftkit.models import load_base

from .shown import checker_tests


def floor(pairs, *, log=math.log, sign=1, divide=None):
    follow = defaultdict(Counter)
    for beginning, token in pairs:
        follow[beginning][token] += 1
    total = sum(n * log(c.total() / n) for c in follow.values() for n in c.values())
    return sign * total / (divide(pairs, follow) if divide else len(pairs))


def by_all(pairs):
    tokens = [token for _, token in pairs]
    if len(set(pairs)) * 2 == len(pairs):  # the sure pairs, twice each
        return 0.0
    return -sum(math.log(tokens.count(token) / len(pairs)) for token in tokens) / len(pairs)


def by_kinds(pairs):
    """Every continuation that occurs is taken to be equally likely."""
    follow = defaultdict(set)
    for beginning, token in pairs:
        follow[beginning].add(token)
    return sum(math.log(len(follow[beginning])) for beginning, _ in pairs) / len(pairs)


RIGHT = {"A": END_MASKED, "B": TOO_LITTLE_TRAINS, "C": OTHER_ROWS, "D": LR_TOO_HIGH}


def diagnoses(**changed):
    return lambda: RIGHT | changed


EXERCISES = [
    (
        check_loss_floor,
        floor,
        {
            "minus": lambda pairs: floor(pairs, sign=-1),
            "that is the sum": lambda pairs: floor(pairs, divide=lambda p, f: 1),
            "the pairs without a choice": lambda pairs: floor(pairs, divide=lambda p, f: 4),
            "in bits": lambda pairs: floor(pairs, log=math.log2),
            "its own beginning": by_all,
            "costs nothing": lambda pairs: 1.0,
            "0.35 is expected": lambda pairs: floor(pairs) * 1.5,
            "count how often": by_kinds,
            "raised KeyError": lambda pairs: {}[pairs[0]],
        },
    ),
    (
        check_diagnoses,
        diagnoses(),
        {
            "run A is another case: compare its last labels": diagnoses(A=OTHER_ROWS),
            "run B is another case: run it at a tenth and at ten": diagnoses(B=LR_TOO_LOW),
            "run C is another case: compare the loss inside": diagnoses(C=END_MASKED),
            "run D is another case: run it at a tenth and at a hundredth": diagnoses(D=LR_TOO_LOW),
            "none of CAUSES": diagnoses(A="something else"),
            "a dictionary": lambda: ["A"],
        },
    ),
]

test_solution, test_stub, test_wrong_answer = checker_tests(EXERCISES)


def test_a_letter_without_a_cause_is_not_solved_yet():
    assert check_diagnoses(diagnoses(D=...)).not_attempted and check_diagnoses(dict).not_attempted


@pytest.fixture(scope="module")
def unknown():
    tokenizer = load_base()[1]
    rows = [row for row in read_rows(find_chat()["train"], tokenizer, 128).rows if len(row["input_ids"]) < 30]
    return plant_unknown_bugs(load_base()[0], pad(rows[:4], tokenizer.pad_token_id))


def test_each_planted_bug_is_what_its_letter_says(unknown):
    """The evidence that the hints name; LR_TOO_LOW is planted nowhere."""
    lr = 3e-3
    curves = {name: run(lr, steps=15) for name, run in unknown.items()}
    assert {name for name, curve in curves.items() if curve.accuracies[-1] == 1} == {"A", "C"}
    assert curves["A"].start.last < 5 < 20 < curves["B"].start.last
    assert curves["C"].start.too_high and not any(curves[name].start.too_high for name in "ABD")
    assert unknown["D"](lr / 100, steps=15).accuracies[-1] == 1
    for factor in (0.01, 10):
        assert unknown["B"](lr * factor, steps=15).accuracies[-1] < 1
    assert sorted(RIGHT.values()) == sorted(set(CAUSES) - {LR_TOO_LOW})


def test_a_run_leaves_the_model_and_says_nothing_of_its_bug(unknown):
    again = [unknown["A"](1e-3, steps=2).losses for _ in range(2)]
    assert again[0] == again[1] and len(again[0]) == 3
    assert END_MASKED not in repr(unknown["A"])
