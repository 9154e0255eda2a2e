"""The checkers of notebook 07: a solution is right, a stub "Not solved yet", a mistake gets the hint meant for it."""

import math
from collections import Counter, defaultdict

import torch

from ftcourse.exercises.overfit_one_batch import check_fixed_labels, check_loss_floor, check_token_accuracy

from .shown import checker_tests

IGNORE = -100


def accuracy(logits, labels, *, out=slice(None, -1), wanted=slice(1, None), ignore=True, count=False):
    right = logits[:, out].argmax(-1) == labels[:, wanted]
    kept = labels[:, wanted] != IGNORE
    right = right[kept] if ignore else right
    return (right.sum() if count else right.float().mean()).item()


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


def in_place(labels):
    labels[:] = labels.roll(-1, 0)


EXERCISES = [
    (
        check_token_accuracy,
        accuracy,
        {
            "labels of -100 do not count": lambda x, y: accuracy(x, y, ignore=False),
            "divide by how many": lambda x, y: accuracy(x, y, count=True),
            "compare output t with label t + 1.": lambda x, y: accuracy(x, y, out=slice(None), wanted=slice(None)),
            "and leave out labels": lambda x, y: accuracy(x, y, out=slice(None), wanted=slice(None), ignore=False),
            "none is right": lambda x, y: accuracy(x, y, out=slice(1, None), wanted=slice(None, -1)),
            "0.60 is expected": lambda x, y: 0.77,
            "one number": lambda x, y: torch.ones(3),
            "raised RuntimeError": lambda x, y: x.view(3, 3),
        },
    ),
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
        check_fixed_labels,
        lambda labels: labels.roll(-1, 0),
        {
            "unchanged": lambda labels: labels,
            "the other way": lambda labels: labels.roll(1, 0),
            "along the row": lambda labels: labels.roll(-1, 1),
            "the wrong row": lambda labels: labels.roll(1, 1),
            "reversed": lambda labels: labels.flip(0),
            "all -100": lambda labels: torch.full_like(labels, IGNORE),
            "move rows only": lambda labels: labels.roll(2, 0),
            "a tensor is wanted": lambda labels: labels.tolist(),
            "returned nothing": in_place,
            "shape should be": lambda labels: labels[1:],
        },
    ),
]

test_solution, test_stub, test_wrong_answer = checker_tests(EXERCISES)


def test_tensors_are_numbers_too():
    assert check_token_accuracy(lambda x, y: torch.tensor(accuracy(x, y))).right
    assert check_fixed_labels(lambda labels: torch.stack([*labels[1:], labels[0]])).right
