"""The checkers of notebook 06: a solution is right, a stub "Not solved yet", a mistake gets the hint meant for it."""

import math

from ftcourse.exercises.optimizer_and_schedule import check_decays, check_rate_at, check_warmup_steps

from .shown import checker_tests


def rate(step, peak, warmup, total):
    if step < warmup:
        return peak * step / warmup
    return peak * (total - step) / (total - warmup)


EXERCISES = [
    (
        check_decays,
        lambda name, p: p.ndim >= 2,
        {
            "nothing decays": lambda name, p: False,
            "everything decays": lambda name, p: True,
            "upside down": lambda name, p: p.ndim < 2,
            "the bias decays": lambda name, p: "norm" not in name,
            "a vector by shape": lambda name, p: "bias" not in name,
            "Look at the shape": lambda name, p: "norm" not in name and "bias" not in name,
            "True or False": lambda name, p: p.ndim,
        },
    ),
    (
        check_warmup_steps,
        lambda rows, size, epochs, share: round(math.ceil(rows / size) * epochs * share),
        {
            "a smaller one": lambda rows, size, epochs, share: int(rows // size * epochs * share),
            "multiply by the epochs": lambda rows, size, epochs, share: round(math.ceil(rows / size) * share),
            "take the share": lambda rows, size, epochs, share: math.ceil(rows / size) * epochs,
            "of the rows": lambda rows, size, epochs, share: round(rows * share),
            "rows seen": lambda rows, size, epochs, share: round(rows * epochs * share),
            "whole number": lambda rows, size, epochs, share: rows / size * epochs * share,
            "round up only": lambda rows, size, epochs, share: round((rows // size + 1) * epochs * share + 0.1),
            "a tenth of them 7": lambda rows, size, epochs, share: 8,
        },
    ),
    (
        check_rate_at,
        rate,
        {
            "multiply by the peak": lambda s, p, w, t: rate(s, 1.0, w, t),
            "warm up first": lambda s, p, w, t: p * (t - s) / t,
            "one step ahead": lambda s, p, w, t: rate(min(s + 1, t), p, w, t),
            "warmup is over": lambda s, p, w, t: rate(s, p, 2 * w, t),
            "stays at the peak": lambda s, p, w, t: p * min(1, s / w),
            "last step the rate should be 0": lambda s, p, w, t: max(rate(s, p, w, t), 0.1 * p),
            "at step 5": lambda s, p, w, t: rate(s, p, w, t) if s <= w else rate(s, p, w, t) ** 2,
        },
    ),
]

test_solution, test_stub, test_wrong_answer = checker_tests(EXERCISES)
