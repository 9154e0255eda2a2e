"""The checkers: a solution is right, a stub "Not solved yet", a wrong answer gets the hint meant for it."""

import dataclasses

import pytest
import torch

from ftcourse.exercises import Verdict, WrongAnswer, checker, require_answer, require_tensor
from ftcourse.exercises.gradient_masks import check_child_gradient, check_child_variance, check_masked_descent

from .shown import checker_tests


def keep(gradient, reserve_p, generator):
    return torch.rand(gradient.shape, generator=generator) < reserve_p


def right_gradient(gradient, reserve_p, generator):
    return torch.where(keep(gradient, reserve_p, generator), gradient / reserve_p, 0.0)


def in_place(gradient, reserve_p, generator):
    gradient.copy_(right_gradient(gradient, reserve_p, generator))
    return gradient


FIXED = torch.rand(40, 50, generator=torch.Generator().manual_seed(0))

WRONG_GRADIENTS = {
    "amplifier is missing": lambda g, p, rng: torch.where(keep(g, p, rng), g, 0.0),
    "multiplied by reserve_p": lambda g, p, rng: torch.where(keep(g, p, rng), g * p, 0.0),
    "dropout's rule": lambda g, p, rng: torch.where(keep(g, p, rng), g / (1 - p), 0.0),
    "where the mask is False": lambda g, p, rng: torch.where(keep(g, p, rng), 0.0, g / p),
    "inf * 0 is NaN": lambda g, p, rng: keep(g, p, rng) * g / p,
    "the same mask": lambda g, p, rng: torch.where(p > FIXED, g / p, 0.0),
    "draw from the one given": lambda g, p, rng: torch.where(torch.rand(g.shape) < p, g / p, 0.0),
    "changes the gradient it was given": in_place,
    "every entry survived": lambda g, p, rng: g,
    "every entry is zero": lambda g, p, rng: torch.zeros_like(g),
    "entries should survive": lambda g, p, rng: torch.where(keep(g, p / 2, rng), g / p, 0.0),
    "same factor": lambda g, p, rng: torch.where(keep(g, p, rng), g / p + g * g, 0.0),
    "NaN in the result": lambda g, p, rng: right_gradient(g, p, rng) / 0,
    "reserve_p = 1": lambda g, p, rng: right_gradient(g, min(p, 0.5), rng),
    "a tensor is wanted": lambda g, p, rng: right_gradient(g, p, rng).tolist(),
    "shape should be": lambda g, p, rng: right_gradient(g, p, rng).flatten(),
    "raised RuntimeError": lambda g, p, rng: g.reshape(3, 3),
}

WRONG_VARIANCES = {
    "without the amplifier": lambda g, p: p * (1 - p) * g**2,
    "standard deviation": lambda g, p: ((1 - p) / p).__pow__(0.5) * g.abs(),
    "square the gradient": lambda g, p: (1 - p) / p * g,
    "variance has the gradient's unit squared": lambda g, p: (1 - p) / p * g.abs(),
    "subtract the square of the mean": lambda g, p: g**2 / p,
    "upside down": lambda g, p: p / (1 - p) * g**2,
    "reserve_p is missing": lambda g, p: g**2,
    "not the variance": lambda g, p: g**4,
    "shape should be": lambda g, p: ((1 - p) / p * g**2).mean(),
}


def descend(weight, gradients, reserve_p, lr, generator, *, child=right_gradient, sign=-1):
    for gradient in gradients:
        weight = weight + sign * lr * child(gradient, reserve_p, generator)
    return weight


def one_mask(weight, gradients, reserve_p, lr, generator):
    mask = keep(weight, reserve_p, generator)
    for gradient in gradients:
        weight = weight - lr * torch.where(mask, gradient / reserve_p, 0.0)
    return weight


WRONG_DESCENTS = {
    "one mask served all steps": one_mask,
    "amplifier is missing": lambda *args: descend(*args, child=WRONG_GRADIENTS["amplifier is missing"]),
    "uphill": lambda *args: descend(*args, sign=+1),
    "the mask is missing": lambda *args: descend(*args, child=lambda g, p, rng: g),
    "use each gradient once": lambda w, gs, *rest: descend(w, gs[:-1], *rest),
    "should move at each step": lambda *args: descend(
        *args, child=lambda g, p, rng: torch.where(keep(g, 2 * p, rng), g / p, 0.0)
    ),
}

EXERCISES = [
    (check_child_gradient, right_gradient, WRONG_GRADIENTS),
    (check_child_variance, lambda g, p: g**2 * (1 - p) / p, WRONG_VARIANCES),
    (check_masked_descent, descend, WRONG_DESCENTS),
]

test_solution, test_stub, test_wrong_answer = checker_tests(EXERCISES)


@pytest.mark.parametrize("check", [check for check, _, _ in EXERCISES])
@pytest.mark.parametrize("seed", range(3))
def test_a_verdict_does_not_depend_on_the_global_generator(check, seed):
    solution = next(solution for other, solution, _ in EXERCISES if other is check)
    torch.manual_seed(seed)
    first = check(solution)
    torch.manual_seed(seed + 100)
    assert check(solution) == first


def test_other_roads_to_the_right_answer_are_right():
    def with_bernoulli(gradient, reserve_p, generator):
        mask = torch.bernoulli(torch.full(gradient.shape, reserve_p), generator=generator).bool()
        return (gradient / reserve_p).masked_fill(~mask, 0.0)

    assert check_child_gradient(with_bernoulli).right
    assert check_masked_descent(lambda *args: descend(*args, child=with_bernoulli)).right
    assert check_child_variance(lambda g, p: (1 / p - 1) * g.double() ** 2).right


def test_a_checker_never_raises():
    def angry(*args):
        raise SyntaxError("no")

    for check, _, _ in EXERCISES:
        assert repr(check(angry)) == "Not yet: your code raised SyntaxError: no"
        assert check(42).message.startswith("your code raised TypeError")


def test_checker_keeps_name_and_docstring():
    assert check_child_gradient.__name__ == "check_child_gradient"
    assert "reserve_p" in check_child_gradient.__doc__


def test_filled_tells_stubs_from_falsy_answers():
    identity = checker(lambda answer: f"got {require_answer(answer)!r}")
    assert identity(None).not_attempted
    assert identity(...).not_attempted
    assert identity(0).right
    assert identity(False).right
    assert identity("").right
    with pytest.raises(WrongAnswer, match="list"):
        require_tensor([1.0], (1,))
    assert not require_tensor(torch.ones(2, requires_grad=True), (2,)).requires_grad


@pytest.mark.parametrize(
    ("verdict", "headline", "sign"),
    [
        (Verdict(True, "a < b"), "Right", "✔"),
        (Verdict(False, "a < b"), "Not yet", "✘"),
        (Verdict(False, "a < b", not_attempted=True), "Not solved yet", "○"),
    ],
)
def test_both_faces_of_a_verdict_say_the_same(verdict, headline, sign):
    assert repr(verdict) == f"{headline}: a < b"
    page = verdict._repr_html_()
    assert f"{sign} <strong>{headline}:</strong> a &lt; b" in page  # sign and words, not the colour alone
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.right = True
