"""The checkers of 02_child_tuning: a solution is right, a stub is not solved, each mistake gets its hint."""

import statistics

import pytest
import torch

from ftcourse.exercises import child_tuning
from ftcourse.exercises.child_tuning import check_compare, check_matched_lr, measured_update
from ftcourse.intervals import Interval, interval

from .shown import checker_tests


def right_lr(lr, old_p, new_p):
    return lr * (old_p / new_p) ** 0.5


WRONG_RATES = {
    "changes with reserve_p": lambda lr, old, new: lr,
    "proportional to √reserve_p": lambda lr, old, new: lr * old / new,
    "upside down: a larger": lambda lr, old, new: lr * (new / old) ** 0.5,
    "the square root is missing": lambda lr, old, new: lr * new / old,
    "lr is missing": lambda lr, old, new: (old / new) ** 0.5,
    "the rate of the control": lambda lr, old, new: lr * old**0.5,
    "with your answer it is": lambda lr, old, new: 1.5 * right_lr(lr, old, new),
    "returns a list": lambda lr, old, new: [lr],
    "raised ZeroDivisionError": lambda lr, old, new: lr / 0,
}


def verdict(found):
    return "F" if found.high < 0 else "control" if found.low > 0 else "inconclusive"


def gaps(score, seeds):
    return [score("F", seed) - score("control", seed) for seed in seeds]


def right_compare(score, seeds):
    found = interval(gaps(score, seeds))
    return found, verdict(found)


def unpaired(score, seeds):
    """Two means whose spread is that of the seeds: the usual mistake."""
    one, other = ([score(method, seed) for seed in seeds] for method in ("F", "control"))
    half = 2 * (statistics.variance(one) + statistics.variance(other)) ** 0.5
    gap = statistics.fmean(one) - statistics.fmean(other)
    found = Interval(gap, gap - half, gap + half)
    return found, verdict(found)


def turned(score, seeds):
    found = interval([-gap for gap in gaps(score, seeds)])
    return found, verdict(found)


def with_verdict(judge):
    return lambda score, seeds: (interval(gaps(score, seeds)), judge(interval(gaps(score, seeds))))


OPPOSITE = {"F": "control", "control": "F", "inconclusive": "inconclusive"}
WRONG_COMPARISONS = {
    "differences per seed": unpaired,
    "sign is reversed": turned,
    "the lower one is better": with_verdict(lambda found: OPPOSITE[verdict(found)]),
    "holds zero": with_verdict(lambda found: "F" if found.mean < 0 else "control"),
    "so there is a difference": with_verdict(lambda found: "inconclusive"),
    'should be "F"': with_verdict(lambda found: "yes"),
    "return two things": lambda score, seeds: interval(gaps(score, seeds)),
    "what interval(…) returns": lambda score, seeds: (statistics.fmean(gaps(score, seeds)), "inconclusive"),
    "every seed": lambda score, seeds: right_compare(score, seeds[:2]),
    "no method": lambda score, seeds: right_compare(lambda method, seed: score(method.lower(), seed), seeds),
}


def judged(compare):
    return check_compare(compare, lambda method, seed: 0.5 + 0.1 * seed + 0.01 * (method == "F"))


EXERCISES = [(check_matched_lr, right_lr, WRONG_RATES), (judged, right_compare, WRONG_COMPARISONS)]

test_solution, test_stub, test_wrong_answer = checker_tests(EXERCISES)


def test_another_road_to_the_right_rate_is_right():
    assert check_matched_lr(lambda *args: torch.tensor(right_lr(*args))).right


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_what_the_checker_measures_is_the_derivation(p):
    assert measured_update(0.01, p) == pytest.approx(0.01 * p**0.5, rel=0.01)


def test_the_praise_holds_what_the_learners_experiment_found():
    runs = []

    def score(method, seed):
        runs.append((method, seed))
        return {"F": (0.50, 0.61), "control": (0.55, 0.60)}[method][seed]

    message = check_compare(right_compare, score).message
    assert "-0.020 nats" in message and message.endswith("inconclusive.")
    assert sorted(runs) == [("F", 0), ("F", 1), ("control", 0), ("control", 1)]


def test_unpaired_intervals_cannot_solve_the_made_up_cases():
    """The made-up seeds differ so much that only paired differences show what is there."""
    for losses, expected in child_tuning._made_up().values():
        found = unpaired(lambda method, seed, losses=losses: losses[method][seed], range(4))[1]
        assert found == "inconclusive" or found == expected
    assert {expected for _, expected in child_tuning._made_up().values()} == {"F", "control", "inconclusive"}
