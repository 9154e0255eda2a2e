"""The checkers of 09_lora_from_scratch: right, untouched, and each typical mistake with the hint meant for it."""

import torch

from ftcourse.exercises.lora import check_count, check_factor, check_merge

from .shown import checker_tests


def count(shapes, r):
    return sum(r * (out + inside) for out, inside in shapes)


WRONG_COUNTS = {
    "the last matrix alone": lambda shapes, r: r * sum(shapes[-1]),
    "the first matrix alone": lambda shapes, r: r * sum(shapes[0]),
    "counts A alone": lambda shapes, r: sum(r * inside for _, inside in shapes),
    "counts B alone": lambda shapes, r: sum(r * out for out, _ in shapes),
    "which is frozen: count A and B": lambda shapes, r: sum(o * i for o, i in shapes),
    "count A and B alone": lambda shapes, r: count(shapes, r) + sum(o * i for o, i in shapes),
    "no r × r matrix": lambda shapes, r: count(shapes, r) + r * r * len(shapes),
    "do not multiply": lambda shapes, r: sum(r * o * i for o, i in shapes),
    "a number is wanted": lambda shapes, r: [count(shapes, r)],
    "it should be 4,352": lambda shapes, r: 12,
}


def factor(change, r, lora_alpha):
    U, S, V = torch.linalg.svd(change, full_matrices=False)
    return V[:r], U[:, :r] * S[:r] * r / lora_alpha


def scaled(change, r, lora_alpha, by):
    A, B = factor(change, r, lora_alpha)
    return A, by * B


def factor_with(change, r, lora_alpha, power, rows=slice(None, 2)):
    U, S, V = torch.linalg.svd(change, full_matrices=False)
    return V[rows], U[:, rows] * S[rows] ** power * r / lora_alpha


def in_place(change, r, lora_alpha):
    answer = factor(change, r, lora_alpha)
    change.zero_()
    return answer


WRONG_FACTORS = {
    "scale comes on top": lambda c, r, a: scaled(c, r, a, a / r),
    "the layer does that": lambda c, r, a: scaled(c, r, a, (a / r) ** 2),
    "not by lora_alpha": lambda c, r, a: scaled(c, r, a, 1 / r),
    "singular values are missing": lambda c, r, a: factor_with(c, r, a, 0),
    "in both": lambda c, r, a: factor_with(c, r, a, 2),
    "smallest singular values": lambda c, r, a: factor_with(c, r, a, 1, slice(-2, None)),
    "in the other order": lambda c, r, a: factor(c, r, a)[::-1],
    "shape should be": lambda c, r, a: factor(c, r + 1, a),
    "return the two": lambda c, r, a: c,
    "changes the matrix": in_place,
    "not the nearest": lambda c, r, a: (torch.ones(r, c.shape[1]), torch.ones(c.shape[0], r)),
}


def merge(W, A, B, lora_alpha, r):
    return (W.float() + lora_alpha / r * B @ A).to(W.dtype)


def merge_in_place(W, A, B, lora_alpha, r):
    return W.copy_(merge(W, A, B, lora_alpha, r))


WRONG_MERGES = {
    "scale is missing": lambda W, A, B, a, r: merge(W, A, B, 1, 1),
    "alone is too much": lambda W, A, B, a, r: merge(W, A, B, a, 1),
    "upside down": lambda W, A, B, a, r: merge(W, A, B, r, a),
    "its root": lambda W, A, B, a, r: merge(W, A, B, a, r**0.5),
    "you subtract": lambda W, A, B, a, r: merge(W, A, B, -a, r),
    "as it was": lambda W, A, B, a, r: W.clone(),
    "rounded more than once": lambda W, A, B, a, r: W + (a / r) * (B.bfloat16() @ A.bfloat16()),
    "should be in W's dtype": lambda W, A, B, a, r: W.float() + a / r * B @ A,
    "changes W itself": merge_in_place,
    "shape should be": lambda W, A, B, a, r: merge(W, A, B, a, r).T,
    "raised RuntimeError": lambda W, A, B, a, r: W + A @ B,
    "not W + ": lambda W, A, B, a, r: merge(W, A, B, a, r) * 3,
}

EXERCISES = [
    (check_count, count, WRONG_COUNTS),
    (check_factor, factor, WRONG_FACTORS),
    (check_merge, merge, WRONG_MERGES),
]

test_solution, test_stub, test_wrong_answer = checker_tests(EXERCISES)


def test_other_roads_to_the_right_answer_are_right():
    def roots(change, r, lora_alpha):  # the roots of the singular values to each
        U, S, V = torch.linalg.svd(change, full_matrices=False)
        root = (S[:r] * r / lora_alpha).sqrt()
        return root[:, None] * V[:r], U[:, :r] * root

    def in_float64(W, A, B, lora_alpha, r):
        return torch.addmm(W.double(), B.double(), A.double(), alpha=lora_alpha / r).bfloat16()

    assert check_factor(roots).right
    assert check_merge(in_float64).right
    assert check_count(lambda shapes, r: float(count(shapes, r))).right


def test_a_checker_never_raises():
    for check, _, _ in EXERCISES:
        assert check(42).message.startswith("your code raised TypeError")
