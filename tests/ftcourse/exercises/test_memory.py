"""Checkers of notebook 12: right, untouched, and each usual mistake with the hint meant for it."""

from itertools import combinations

from ftcourse.exercises.memory import check_fewest_changes, check_forward_seconds, check_largest_micro_batch

from .shown import checker_tests


def rows_by_two(peak_of, capacity):
    per_row = peak_of(2) - peak_of(1)
    return max(0, (capacity - (peak_of(1) - per_row)) // per_row)


def below_none(peak_of, capacity):
    first, second = peak_of(1), peak_of(2)
    return (capacity - 2 * first + second) // (second - first)


def rows_one_by_one(peak_of, capacity):
    rows = 0
    while peak_of(rows + 1) <= capacity:
        rows += 1
    return rows


def unrounded(peak_of, capacity):
    return (capacity - peak_of(0)) / (peak_of(1) - peak_of(0))


def fewest(peak_of, changes, capacity):
    for count in range(len(changes) + 1):
        for chosen in combinations(changes, count):
            if peak_of(chosen) <= capacity:
                return list(chosen)
    return None


def last_ones(peak_of, changes, capacity):
    return fewest(peak_of, list(reversed(changes)), capacity)


def by_greed(peak_of, changes, capacity):
    """Takes what comes, until it fits."""
    chosen = []
    for change in changes:
        if peak_of(chosen) > capacity:
            chosen.append(change)
    return chosen


def one_ahead(gather, compute):
    now, arrives = 0.0, gather[0]
    for i, seconds in enumerate(compute):
        now = max(now, arrives)
        arrives = now + gather[i + 1] if i + 1 < len(gather) else 0.0
        now += seconds
    return now


def all_at_once(gather, compute):
    now = 0.0
    for i, seconds in enumerate(compute):
        now = max(now, sum(gather[: i + 1])) + seconds
    return now


test_right, test_stub, test_wrong = checker_tests(
    [
        (
            check_fewest_changes,
            fewest,
            {
                "does not fit": lambda peak_of, changes, c: [],
                "you change": by_greed,
                "come first in the list": last_ones,
                "names from `changes`": lambda peak_of, changes, c: ["more GPUs"],
            },
        ),
        (
            check_forward_seconds,
            one_ahead,
            {
                "without overlap": lambda gather, compute: sum(gather) + sum(compute),
                "every all-gather at the start": all_at_once,
                "nothing hides the first": lambda gather, compute: max(sum(gather), sum(compute)),
                "compute alone": lambda gather, compute: sum(compute),
                "has to be gathered, too": lambda gather, compute: one_ahead(gather, compute) - gather[0],
                "take 16 s": lambda gather, compute: 77.0,
            },
        ),
        (
            check_largest_micro_batch,
            rows_by_two,
            {
                "a number of rows is an integer": unrounded,
                "what is there without any row": lambda peak_of, c: c // (peak_of(2) - peak_of(1)),
                "do not fit": lambda peak_of, c: rows_by_two(peak_of, c) + 1,
                "not even one row fits": below_none,
                "rows fit, and you say": lambda peak_of, c: 0,
                "two are enough": rows_one_by_one,
            },
        ),
    ]
)
