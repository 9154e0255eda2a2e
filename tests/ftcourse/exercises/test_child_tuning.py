"""The checkers of 02_child_tuning: a solution is right, a stub is not solved, each mistake gets its hint."""

import math

import pytest
import torch

from ftcourse.exercises.child_tuning import check_accumulated_child, check_steady_step
from ftkit.child_tuning import ChildTuningAdamW

from .shown import checker_tests


def right_step(lr, p, drift, noise):
    return lr * math.sqrt(p) * drift / math.sqrt(drift**2 + noise**2)


WRONG_STEPS = {
    "the amplifier does not restore it": lambda lr, p, d, n: lr * d / math.hypot(d, n),
    "√p is wanted, not p": lambda lr, p, d, n: lr * p * d / math.hypot(d, n),
    "upside down": lambda lr, p, d, n: lr * d / math.hypot(d, n) / p**0.5,
    "that is plain gradient descent: AdamW": lambda lr, p, d, n: lr * d,
    "plain gradient descent without": lambda lr, p, d, n: lr * p * d,
    "so its unit cancels": lambda lr, p, d, n: lr * p**0.5 * d,
    "lr is missing": lambda lr, p, d, n: right_step(1, p, d, n),
    "leaves the noise out": lambda lr, p, d, n: lr * p**0.5 * math.copysign(1, d),
    "not noise² alone": lambda lr, p, d, n: lr * p**0.5 * d / (n or abs(d)),
    "add squares": lambda lr, p, d, n: lr * p**0.5 * d / (abs(d) + n),
    "the root is missing": lambda lr, p, d, n: lr * p**0.5 * d / (d * d + n * n) ** (1 if n else 0.5),
    "is expected, and yours is": lambda lr, p, d, n: 2 * right_step(lr, p, d, n),
    "a number is wanted": lambda lr, p, d, n: [right_step(lr, p, d, n)],
    "raised ZeroDivisionError": lambda lr, p, d, n: lr * d / n,
}


def child(gradient, p, rng, scale=None):
    keep = torch.rand(gradient.shape, generator=rng) < p
    return torch.where(keep, gradient * (1 / p if scale is None else scale), 0.0)


def right_child(micro, p, rng):
    return child(sum(micro), p, rng)


def in_place(micro, p, rng):
    for other in micro[1:]:
        micro[0] += other
    return child(micro[0], p, rng)


WRONG_CHILDREN = {
    "a mask for each micro-batch": lambda micro, p, rng: sum(child(g, p, rng) for g in micro),
    "the amplifier is missing": lambda micro, p, rng: child(sum(micro), p, rng, scale=1),
    "multiplied by reserve_p": lambda micro, p, rng: child(sum(micro), p, rng, scale=p),
    "the mean of the micro-gradients": lambda micro, p, rng: child(sum(micro) / len(micro), p, rng),
    "amplify once per step": lambda micro, p, rng: child(sum(micro), p, rng, scale=p ** -len(micro)),
    "sum over all micro-batches": lambda micro, p, rng: child(micro[-1], p, rng),
    "changes the gradients": in_place,
    "every entry survived": lambda micro, p, rng: sum(micro) / p,
    "should survive": lambda micro, p, rng: child(sum(micro), 1 - p, rng, scale=1 / p),
    "inf * 0 is NaN": lambda micro, p, rng: (torch.rand(40, 50, generator=rng) < p) * sum(micro) / p,
    "draw from the one given": lambda micro, p, rng: torch.where(torch.rand(40, 50) < p, sum(micro) / p, 0.0),
    "shape should be": lambda micro, p, rng: right_child(micro, p, rng).flatten(),
    "a tensor is wanted": lambda micro, p, rng: right_child(micro, p, rng).tolist(),
}

EXERCISES = [
    (check_steady_step, right_step, WRONG_STEPS),
    (check_accumulated_child, right_child, WRONG_CHILDREN),
]

test_solution, test_stub, test_wrong_answer = checker_tests(EXERCISES)


def test_other_roads_to_the_right_answer_are_right():
    def with_bernoulli(micro, p, rng):
        total = torch.stack(micro).sum(dim=0)
        keep = torch.bernoulli(torch.full(total.shape, p), generator=rng).bool()
        return (total / p).masked_fill(~keep, 0.0)

    def masked_before_the_sum(micro, p, rng):
        keep = torch.rand(micro[0].shape, generator=rng) < p
        return sum(torch.where(keep, gradient / p, 0.0) for gradient in micro)

    assert check_accumulated_child(with_bernoulli).right
    assert check_accumulated_child(masked_before_the_sum).right
    assert check_steady_step(lambda *args: torch.tensor(right_step(*args))).right


@pytest.mark.parametrize("seed", range(3))
def test_a_verdict_does_not_depend_on_the_global_generator(seed):
    torch.manual_seed(seed)
    first = check_accumulated_child(right_child)
    torch.manual_seed(seed + 100)
    assert check_accumulated_child(right_child) == first


def test_what_the_checker_calls_right_is_what_the_optimizer_does():
    lr, p, drift, noise = 0.01, 0.3, 0.5, 1.2
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(4_000))
    optimizer = ChildTuningAdamW([("weight", weight)], lr=lr, weight_decay=0, reserve_p=p)
    for step in range(400):
        weight.grad = drift + noise * torch.randn(weight.shape, generator=generator)
        if step == 200:
            start = weight.detach().clone()
        optimizer.step()
    measured = (start - weight.detach()).mean().item() / 200
    # v averages a few hundred squares, so its root is a little below what it comes to: by 1 % here.
    assert measured == pytest.approx(right_step(lr, p, drift, noise), rel=0.03)
