"""The checkers: a solution is right, a stub "Not solved yet", a wrong answer gets the hint meant for it."""

import dataclasses

import pytest
import torch

from ftcourse.exercises import Verdict, WrongAnswer, checker, require_answer, require_tensor
from ftcourse.exercises.gradient_masks import check_largest_rate, check_mask_schedules, check_masked_gradient

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
    "rescaling is missing": lambda g, p, rng: torch.where(keep(g, p, rng), g, 0.0),
    "multiplied by reserve_p": lambda g, p, rng: torch.where(keep(g, p, rng), g * p, 0.0),
    "p is the share that is dropped": lambda g, p, rng: torch.where(keep(g, p, rng), g / (1 - p), 0.0),
    "where the mask is False": lambda g, p, rng: torch.where(keep(g, p, rng), 0.0, g / p),
    "inf * 0 is NaN": lambda g, p, rng: keep(g, p, rng) * g / p,
    "the same mask": lambda g, p, rng: torch.where(p > FIXED, g / p, 0.0),
    "draw from the one given": lambda g, p, rng: torch.where(torch.rand(g.shape) < p, g / p, 0.0),
    "changes the gradient it was given": in_place,
    "no entry is zero": lambda g, p, rng: g,
    "every entry is zero": lambda g, p, rng: torch.zeros_like(g),
    "entries should be kept": lambda g, p, rng: torch.where(keep(g, p / 2, rng), g / p, 0.0),
    "same factor": lambda g, p, rng: torch.where(keep(g, p, rng), g / p + g * g, 0.0),
    "NaN in the result": lambda g, p, rng: right_gradient(g, p, rng) / 0,
    "reserve_p = 1": lambda g, p, rng: right_gradient(g, min(p, 0.5), rng),
    "a tensor is wanted": lambda g, p, rng: right_gradient(g, p, rng).tolist(),
    "shape should be": lambda g, p, rng: right_gradient(g, p, rng).flatten(),
    "raised RuntimeError": lambda g, p, rng: g.reshape(3, 3),
}


def descend(anew, reserve_p, lr, steps, generator, *, scale=None, sign=-1, flip=False):
    """Masked descent on half the square of 1,000 weights; the options are mistakes."""
    weight = torch.ones(1_000)
    mask = keep(weight, reserve_p, generator)
    for _ in range(steps):
        weight = weight + sign * lr * torch.where(mask, weight / (scale or reserve_p), 0.0)
        if anew != flip:
            mask = keep(weight, reserve_p, generator)
    return weight


def without_a_mask(anew, reserve_p, lr, steps, generator):
    return torch.ones(1_000) * (1 - lr / reserve_p) ** steps


WRONG_RUNS = {  # part of the hint: (run, adapts, keeps)
    "became infinite": (lambda *args: descend(*args) / 0, "anew", "once"),
    "no weight moved": (lambda *args: torch.ones(1_000), "anew", "once"),
    "some weights grew": (lambda *args: descend(*args, sign=1), "anew", "once"),
    "the gradient mask is missing": (without_a_mask, "anew", "once"),
    "w - lr * w / reserve_p": (lambda *args: descend(*args, scale=1), "anew", "once"),
    "draw the mask before": (lambda anew, *args: descend(True, *args), "anew", "once"),
    "draw it inside the loop": (lambda anew, *args: descend(False, *args), "anew", "once"),
    "draw the mask before.": (lambda *args: descend(*args, flip=True), "anew", "once"),
    "entries should be kept": (lambda anew, p, lr, *r: descend(anew, 2 * p, 2 * lr, *r), "anew", "once"),
    'each be "once" or "anew"': (descend, "both", "once"),
    "look at `adapts` again": (descend, "once", "once"),
    "look at `keeps` again": (descend, "anew", "anew"),
    "shape should be": (lambda *args: descend(*args)[:10], "anew", "once"),
}


def largest(reserve_p, rates, generator, *, child=right_gradient, steps=20, choose=max, level=1.0):
    def left(lr):
        weight = torch.ones(1_000)
        for _ in range(steps):
            weight = weight - lr * child(weight, reserve_p, generator)
        return weight.square().mean()

    return choose(lr for lr in rates if left(lr) < level)


WRONG_RATES = {  # part of the hint: (largest_rate, times_smaller)
    "one of the rates given": (lambda *args: largest(*args) / 3, 4),
    "the smallest rate": (lambda *args: largest(*args, choose=min), 4),
    "reserve_p made no difference": (lambda *args: largest(*args, child=lambda g, p, rng: g), 1),
    "Compare the loss after the steps": (lambda p, rates, rng: max(rates), 1),
    "How many times smaller": (largest, 2),
    "How many times smaller ": (largest, 0.25),
}

EXERCISES = [(check_masked_gradient, right_gradient, WRONG_GRADIENTS)]

test_solution, test_stub, test_wrong_answer = checker_tests(EXERCISES)


@pytest.mark.parametrize("hint", WRONG_RUNS)
def test_a_wrong_run_or_judgement_gets_its_hint(hint):
    verdict = check_mask_schedules(*WRONG_RUNS[hint])
    assert repr(verdict).startswith("Not yet: ") and hint in verdict.message, verdict


@pytest.mark.parametrize("hint", WRONG_RATES)
def test_a_wrong_rate_or_judgement_gets_its_hint(hint):
    verdict = check_largest_rate(*WRONG_RATES[hint])
    assert repr(verdict).startswith("Not yet: ") and hint.strip() in verdict.message, verdict


def test_experiments_with_their_judgements_are_right_and_stubs_are_not_solved_yet():
    verdict = check_mask_schedules(descend, "anew", "once")
    assert verdict.right and "drawn once, 2" in verdict.message and "drawn anew, 99" in verdict.message
    assert check_largest_rate(largest, 4.0).right and check_largest_rate(largest, 4).right
    for stub in (lambda *args: None, lambda *args: ...):
        assert check_mask_schedules(stub, ..., ...).not_attempted
        assert check_largest_rate(stub, ...).not_attempted
    assert check_mask_schedules(descend, ..., ...).not_attempted  # run, and not judged yet
    assert check_largest_rate(largest, ...).not_attempted


@pytest.mark.parametrize("seed", range(3))
def test_a_verdict_does_not_depend_on_the_global_generator(seed):
    right = [
        lambda: check_masked_gradient(right_gradient),
        lambda: check_mask_schedules(descend, "anew", "once"),
        lambda: check_largest_rate(largest, 4),
    ]
    for check in right:
        torch.manual_seed(seed)
        first = check()
        torch.manual_seed(seed + 100)
        assert check() == first


def test_other_roads_to_the_right_answer_are_right():
    def with_bernoulli(gradient, reserve_p, generator):
        mask = torch.bernoulli(torch.full(gradient.shape, reserve_p), generator=generator).bool()
        return (gradient / reserve_p).masked_fill(~mask, 0.0)

    assert check_masked_gradient(with_bernoulli).right
    assert check_largest_rate(lambda *args: largest(*args, child=with_bernoulli), 4).right

    # A learner may draw anew at each step and not before the loop.
    def in_the_loop(anew, p, lr, steps, rng):
        weight, mask = torch.ones(1_000), None
        for _ in range(steps):
            mask = torch.rand(1_000, generator=rng) < p if anew or mask is None else mask
            weight = torch.where(mask, weight * (1 - lr / p), weight)
        return weight

    assert check_mask_schedules(in_the_loop, "anew", "once").right


def test_a_checker_never_raises():
    def angry(*args):
        raise SyntaxError("no")

    checks = [
        check_masked_gradient,
        lambda answer: check_mask_schedules(answer, "anew", "once"),
        lambda answer: check_largest_rate(answer, 4),
    ]
    for check in checks:
        assert repr(check(angry)).startswith("Not yet: your code raised SyntaxError: no (in `angry`, line ")
        assert check(42).message.startswith("your code raised TypeError")


def test_checker_keeps_name_and_docstring():
    assert check_masked_gradient.__name__ == "check_masked_gradient"
    assert "reserve_p" in check_masked_gradient.__doc__


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
