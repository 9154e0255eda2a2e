"""Checkers of notebook 12: right, untouched, and each usual mistake with the hint meant for it."""

from ftcourse.exercises.memory import check_kept_bytes, check_largest_micro_batch, check_rank_bytes

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


test_right, test_stub, test_wrong = checker_tests(
    [
        (
            check_kept_bytes,
            lambda trained, frozen: 16 * trained + 4 * frozen,
            {
                "no gradient and no moments": lambda t, f: 16 * (t + f),
                "still a weight": lambda t, f: 16 * t,
                "two moments": lambda t, f: 12 * t + 4 * f,
                "the weights alone": lambda t, f: 4 * (t + f),
                "not bytes": lambda t, f: 4 * t + f,
                "gradients or moments are missing": lambda t, f: 8 * t + 4 * f,
                "17,200 bytes": lambda t, f: 1,
                "keep 40 bytes": lambda t, f: 17_200,
            },
        ),
        (
            check_rank_bytes,
            lambda layers, ranks: 16 * sum(layers) / ranks + 4 * max(layers),
            {
                "two layers are gathered": lambda p, n: 16 * sum(p) / n,
                "divide by the ranks": lambda p, n: 16 * sum(p) + 4 * max(p),
                "count two": lambda p, n: 16 * sum(p) / n + 2 * max(p),
                "in bfloat16": lambda p, n: 16 * sum(p) / n + 8 * max(p),
                "not all layers": lambda p, n: 16 * sum(p) / n + 2 * sum(p),
                "do not divide it": lambda p, n: 16 * sum(p) / n + 4 * max(p) / n,
                "16 bytes, not 4": lambda p, n: 4 * sum(p) / n + 4 * max(p),
                "take 320 bytes": lambda p, n: 4 * sum(p) + 4 * max(p),
                "44,000 bytes are expected": lambda p, n: 1,
            },
        ),
        (
            check_largest_micro_batch,
            rows_by_two,
            {
                "rows are whole": unrounded,
                "without any row first": lambda peak_of, c: c // (peak_of(2) - peak_of(1)),
                "do not fit": lambda peak_of, c: rows_by_two(peak_of, c) + 1,
                "not even one row fits": below_none,
                "rows fit, and you say": lambda peak_of, c: 0,
                "two are enough": rows_one_by_one,
            },
        ),
    ]
)
