"""The checkers of 10_adapter_family: right, untouched, and each typical mistake with the hint meant for it."""

import statistics

import pytest

from ftcourse.exercises.adapter_family import check_four_bits, check_front
from ftcourse.intervals import interval

from .shown import checker_tests

POINTS = {"full": (0.6, 0.5), "LoRA": (0.5, 0.7), "prefix": (0.1, 0.6)}


def beats(one, other):
    return one != other and one[0] >= other[0] and one[1] >= other[1]


def front(points):
    return {n for n in points if not any(beats(points[m], points[n]) for m in points)}


def check_own_front(answer):
    return check_front(answer, POINTS)


def strictly(points):
    """Only those are left out that are worse in both measures."""
    return {n for n, p in points.items() if not any(q[0] > p[0] and q[1] > p[1] for q in points.values())}


WRONG_FRONTS = {
    "return the others": lambda points: set(points) - front(points),
    "highest sum": lambda points: {max(points, key=lambda name: sum(points[name]))},
    "best of each measure": lambda points: {max(points, key=lambda n: points[n][i]) for i in (0, 1)},
    "is beaten by": strictly,
    "is missing from": lambda points: set(sorted(front(points))[1:]),
    "no method": lambda points: {*front(points), "z"},
    "a set of names is expected": lambda points: 3,
}


def known_loss(quantised, seed):
    """In place of a model: four bits cost 0.1."""
    return 1.0 + seed + 0.1 * quantised + 0.001 * seed * quantised


def check_own_bits(answer):
    return check_four_bits(answer, known_loss)


def differences(final_loss, seeds):
    return [final_loss(True, seed) - final_loss(False, seed) for seed in seeds]


def word(low, high):
    return "costs" if low > 0 else "gains" if high < 0 else "cannot tell"


def four_bits(final_loss, seeds):
    found = interval(differences(final_loss, seeds))
    return word(found.low, found.high)


def unpaired(final_loss, seeds):
    one, other = (interval([final_loss(arm, seed) for seed in seeds]) for arm in (True, False))
    return word(one.low - other.high, one.high - other.low)


def upside_down(final_loss, seeds):
    found = interval([-each for each in differences(final_loss, seeds)])
    return word(found.low, found.high)


def by_the_mean(final_loss, seeds):
    mean = statistics.fmean(differences(final_loss, seeds))
    return word(mean, mean)


WRONG_VERDICTS = {
    "pair by seed": unpaired,
    "upside down": upside_down,
    "the mean alone": by_the_mean,
    "run all pairs": lambda f, seeds: four_bits(f, seeds[:2]),
    "the verdict is one of": lambda f, seeds: four_bits(f, seeds) == "costs",
    "take the seeds that you are given": lambda f, seeds: four_bits(f, range(5)),
}

EXERCISES = [(check_own_front, front, WRONG_FRONTS), (check_own_bits, four_bits, WRONG_VERDICTS)]

test_solution, test_stub, test_wrong_answer = checker_tests(EXERCISES)


def test_lists_of_names_are_right_too_and_the_message_names_them():
    verdict = check_own_front(lambda points: sorted(front(points)))
    assert verdict.right and "LoRA, full" in verdict.message


def test_the_model_is_trained_once_for_each_pair_and_only_after_the_made_up_losses():
    trained = []

    def counted(quantised, seed):
        trained.append((quantised, seed))
        return known_loss(quantised, seed)

    assert not check_four_bits(upside_down, counted).right and not trained
    assert check_four_bits(four_bits, counted).right
    assert len(trained) == len(set(trained)) == 6


def test_a_verdict_that_ignores_the_real_losses_is_wrong():
    def right_on_made_up_ones_only(final_loss, seeds):
        return four_bits(final_loss, seeds) if len(seeds) == 4 else "gains"

    assert "on pocket-base the interval is +0.099 to +0.103" in check_own_bits(right_on_made_up_ones_only).message


@pytest.mark.parametrize(("check", "answer"), [(check_own_front, 42), (check_own_bits, 42)])
def test_a_checker_never_raises(check, answer):
    assert check(answer).message.startswith("your code raised TypeError")
