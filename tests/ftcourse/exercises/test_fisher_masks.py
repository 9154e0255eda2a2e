"""The checkers of 03_fisher_masks: a solution is right, a stub is empty, a wrong answer gets its own hint."""

import pytest
import torch

from ftcourse.exercises.fisher_masks import check_child, check_compact_bytes, check_fisher

from .shown import checker_tests


def right_fisher(gradients):
    return (gradients**2).mean(0)


def in_place(gradients):
    return gradients.square_().mean(0)


WRONG_FISHERS = {
    "average first and square then": lambda g: g.mean(0) ** 2,
    "sum of the squares": lambda g: (g**2).sum(0),
    "root of the mean square": lambda g: (g**2).mean(0).sqrt(),
    "that is the variance": lambda g: g.var(0),
    "do not subtract the mean": lambda g: g.var(0, unbiased=False),
    "mean absolute gradient": lambda g: g.abs().mean(0),
    "squares are missing": lambda g: g.mean(0),
    "not the mean over the examples": lambda g: (g**4).mean(0),
    "shape should be": lambda g: (g**2).mean(),
    "changes the gradients": in_place,
    "a tensor is wanted": lambda g: right_fisher(g).tolist(),
}


def with_another_error(scores, reserve_p):
    if not any(score.any() for score in scores.values()):
        raise RuntimeError("all scores are zero")
    return right_child(scores, reserve_p)


def threshold_of(scores, reserve_p):
    flat = torch.cat([score.flatten() for score in scores.values()])
    if not flat.any():
        raise ValueError("all scores are zero")
    return flat.topk(round(reserve_p * flat.numel())).values[-1]


def right_child(scores, reserve_p):
    threshold = threshold_of(scores, reserve_p)
    return {name: score >= threshold for name, score in scores.items()}


def one_for_each(scores, reserve_p):
    return {name: score >= threshold_of({name: score}, reserve_p) for name, score in scores.items()}


def changed(change):
    return lambda scores, p: {name: change(mask) for name, mask in right_child(scores, p).items()}


WRONG_CHILDREN = {
    "every tensor keeps its own tenth": one_for_each,
    "upside down": changed(torch.logical_not),
    "one weight is missing": lambda scores, p: {
        name: score > threshold_of(scores, p) for name, score in scores.items()
    },
    "not the ones of largest score": changed(lambda mask: mask.flatten().flip(0).reshape(mask.shape)),
    "20 of 200 weights should be in the child, and 40 are": lambda scores, p: right_child(scores, 2 * p),
    "a tensor of booleans": changed(torch.Tensor.float),
    "a dict with a mask for each": lambda scores, p: list(right_child(scores, p).values()),
    "its mask should have the shape": changed(torch.flatten),
    "all zero should raise a ValueError": lambda scores, p: {
        name: score >= torch.cat([s.flatten() for s in scores.values()]).topk(round(p * 200)).values[-1]
        for name, score in scores.items()
    },
    "a ValueError, and yours raised RuntimeError": with_another_error,
    "raised KeyError": lambda scores, p: scores["nothing"],
}

WRONG_BYTES = {
    "only eight bytes": lambda n, p: round(8 * p * n),
    "only four bytes": lambda n, p: round(4 * p * n),
    "AdamW's whole state": lambda n, p: 8 * n,
    "for every weight": lambda n, p: 12 * n,
    "a mask has a byte": lambda n, p: round(8 * p * n) + n,
    "only the child's weights have an index": lambda n, p: round(8 * p * n) + 4 * n,
    "not eight": lambda n, p: round(16 * p * n),
    "counts numbers": lambda n, p: round(3 * p * n),
    "it should be 1,200,000 bytes": lambda n, p: 12 * (n - p * n),
    "one number is wanted": lambda n, p: (8 * p * n, 4 * p * n),
    "it should be 3,840 bytes": lambda n, p: 12 * p * n if p < 0.5 else 8 * n + n,
}

EXERCISES = [
    (check_fisher, right_fisher, WRONG_FISHERS),
    (check_child, right_child, WRONG_CHILDREN),
    (check_compact_bytes, lambda n, p: 12 * round(p * n), WRONG_BYTES),
]

test_solution, test_stub, test_wrong_answer = checker_tests(EXERCISES)


def test_other_roads_to_the_right_answer_are_right():
    def with_loops(gradients):
        total = torch.zeros(gradients.shape[1:])
        for gradient in gradients:
            total += gradient * gradient
        return total / len(gradients)

    def with_quantile(scores, reserve_p):
        flat = torch.cat([score.flatten() for score in scores.values()])
        if flat.max() == 0:
            raise ValueError("nothing to choose from")
        threshold = flat.quantile(1 - reserve_p, interpolation="higher")
        return {name: score >= threshold for name, score in scores.items()}

    assert check_fisher(with_loops).right
    assert check_child(with_quantile).right
    assert check_compact_bytes(lambda n, p: int(n * p) * 3 * 4).right


@pytest.mark.parametrize("check", [check for check, _, _ in EXERCISES])
@pytest.mark.parametrize("seed", range(2))
def test_a_verdict_does_not_depend_on_the_global_generator(check, seed):
    solution = next(solution for other, solution, _ in EXERCISES if other is check)
    torch.manual_seed(seed)
    first = check(solution)
    torch.manual_seed(seed + 100)
    assert check(solution) == first
