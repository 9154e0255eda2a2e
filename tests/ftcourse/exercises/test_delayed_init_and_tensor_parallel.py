"""Checkers of notebook 14: right, untouched, and each usual mistake with the hint meant for it."""

import torch
from torch.nn.functional import linear

from ftcourse.exercises.delayed_init_and_tensor_parallel import (
    check_loading_peaks,
    check_row_parallel,
    check_shard_shapes,
)

from .shown import checker_tests


def peaks(route, full, ranks):
    share = full / ranks
    if route == "every rank":
        return [full] * ranks
    return [full * (route == "rank 0") + share] + [share] * (ranks - 1)


def other(route, value):
    """`peaks` with another answer for one route."""
    return lambda name, full, ranks: value(full, ranks) if name == route else peaks(name, full, ranks)


def shapes(kind, out, wide, tp):
    return ((out // tp, wide), (out // tp,)) if kind == "column" else ((out, wide // tp), (out,))


def row_parallel(xs, weights, bias):
    return sum(x @ w.T for x, w in zip(xs, weights, strict=True)) + bias


def pairs(xs, weights):
    return list(zip(xs, weights, strict=True))


EXERCISES = [
    (
        check_loading_peaks,
        peaks,
        {
            "a number for each rank": lambda route, full, ranks: [full],
            "holds a shard of the model as well": other("rank 0", lambda f, n: [f] + [f / n] * (n - 1)),
            "meta takes no memory": other("rank 0", lambda f, n: [f] + [0.0] * (n - 1)),
            "never lie side by side": other("every rank", lambda f, n: [f + f / n] * n),
            "left after sharding": other("every rank", lambda f, n: [f / n] * n),
            "'shards', 16 GB on 4 ranks: expected": other("shards", lambda f, n: [f] * n),
        },
    ),
    (
        check_shard_shapes,
        shapes,
        {
            "two shapes": lambda kind, out, wide, tp: (out,),
            "A column of the formula": lambda kind, *rest: shapes({"row": "column", "column": "row"}[kind], *rest),
            "not (in, out)": lambda *a: (shapes(*a)[0][::-1], shapes(*a)[1]),
            "else it is whole": lambda kind, out, wide, tp: (shapes(kind, out, wide, tp)[0], (out // tp,)),
            "use //": lambda kind, out, wide, tp: (
                ((out / tp, wide), (out / tp,)) if kind == "column" else ((out, wide / tp), (out,))
            ),
            "expected (3, 8)": lambda kind, out, wide, tp: ((out, wide), (out,)),
        },
    ),
    (
        check_row_parallel,
        row_parallel,
        {
            "side by side": lambda xs, ws, b: torch.cat([x @ w.T + b for x, w in pairs(xs, ws)], 1),
            "the bias is in it": lambda xs, ws, b: sum(linear(x, w, b) for x, w in pairs(xs, ws)),
            "the bias is missing": lambda xs, ws, b: sum(x @ w.T for x, w in pairs(xs, ws)),
            "that is a mean": lambda xs, ws, b: sum(x @ w.T for x, w in pairs(xs, ws)) / len(xs) + b,
            "the first rank's part alone": lambda xs, ws, b: linear(xs[0], ws[0], b),
            "differs from": lambda xs, ws, b: row_parallel(xs, ws, b) + 1,
            "shape should be": lambda xs, ws, b: b,
        },
    ),
]

test_solution_is_right, test_empty_stub, test_each_mistake_gets_its_hint = checker_tests(EXERCISES)
