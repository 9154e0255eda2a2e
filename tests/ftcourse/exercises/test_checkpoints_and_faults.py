"""Checkers of notebook 15: right, untouched, and each usual mistake with the hint meant for it."""

import math
import re

from ftcourse.exercises.checkpoints_and_faults import check_best_interval, check_newest_whole

from .shown import checker_tests

STEP = re.compile(r"step-\d+$")


def whole(folder):
    return folder["written"] == folder["found"]


def right(folders):
    return max((n for n, f in folders.items() if STEP.match(n) and whole(f)), default=None)


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
            check_best_interval,
            lambda write, failures: math.sqrt(2 * write * 86_400 / failures),
            {
                "factor 2": lambda w, f: math.sqrt(w * 86_400 / f),
                "not their number": lambda w, f: math.sqrt(2 * w * f),
                "86,400": lambda w, f: math.sqrt(2 * w / f),
                "not minutes": lambda w, f: math.sqrt(2 * w * 86_400 / f) / 60,
                "square root": lambda w, f: 2 * w * 86_400 / f,
                "write more often": lambda w, f: 86_400 / f,
                "s, not": lambda w, f: 7.0,
                "raised TypeError": lambda w, f: "a" / 2,
            },
        ),
    ]
)
