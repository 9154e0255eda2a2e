"""Checkers of notebook 15: right, untouched, and each usual mistake with the hint meant for it."""

import re

import pytest

from ftcourse.exercises.checkpoints_and_faults import (
    STEPS,
    TRAINERS,
    check_newest_whole,
    check_resume_test,
    first_difference,
)

from .shown import checker_tests

STEP = re.compile(r"step-\d+$")


def whole(folder):
    return folder["written"] == folder["found"]


def right(folders):
    return max((n for n, f in folders.items() if STEP.match(n) and whole(f)), default=None)


def differing(train, steps, stop):
    """The steps, counted from 1, whose losses differ after a resume."""
    losses, state = train(None, stop)
    losses += train(state, steps - stop)[0]
    return [step for step, (a, b) in enumerate(zip(losses, train(None, steps)[0], strict=True), 1) if a != b]


def resume_test(train, steps, stop):
    return min(differing(train, steps, stop), default=None)


def if_any(change):
    """A wrong answer: `change` of all differing steps and the stop, where there are any."""

    def answer(train, steps, stop):
        found = differing(train, steps, stop)
        return change(found, stop) if found else None

    return answer


test_right, test_untouched, test_mistakes = checker_tests(
    [
        (
            check_newest_whole,
            right,
            {
                "take the newest": lambda fs: min(
                    (n for n, f in fs.items() if STEP.match(n) and whole(f)), default=None
                ),
                "10 is newer than 9": lambda fs: max(
                    (n for n, f in fs.items() if STEP.match(n) and whole(f)),
                    key=lambda n: n[-1],
                    default=None,
                ),
                "was never finished": lambda fs: max(fs, default=None),
                "even when all files": lambda fs: max((n for n, f in fs.items() if whole(f)), default=None),
                "compare sizes": lambda fs: max(
                    (n for n, f in fs.items() if STEP.match(n) and f["found"].keys() == f["written"].keys()),
                    default=None,
                ),
                "is gone": lambda fs: max(
                    (
                        n
                        for n, f in fs.items()
                        if STEP.match(n) and all(f["written"][name] == size for name, size in f["found"].items())
                    ),
                    default=None,
                ),
                "return None": lambda fs: right(fs) or "step-000004",
                "an empty folder": lambda fs: right(fs) if fs else "none",
            },
        ),
        (
            check_resume_test,
            resume_test,
            {
                "resumes exactly, and you report": lambda train, steps, stop: resume_test(train, steps, stop) or steps,
                "Compare every step": if_any(lambda found, stop: min(found) if stop + 1 in found else None),
                "not from the resume": if_any(lambda found, stop: min(found) - stop),
                "count from 1": if_any(lambda found, stop: min(found) - 1),
                "the first step that differs": if_any(lambda found, stop: max(found) + 90),
                "raised TypeError": lambda train, steps, stop: "a" / stop,
            },
        ),
    ]
)


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_forgets_what_it_says(name):
    train = TRAINERS[name]
    assert train(None, STEPS)[0] == train(None, STEPS)[0]  # or a resume could not be judged
    found = [first_difference(train, stop) for stop in (3, 6)]
    assert found == [None, None] if not train.forgets else None not in found
