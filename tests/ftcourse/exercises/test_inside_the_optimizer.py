"""The checkers of 02b_inside_the_optimizer: a solution is right, a stub is not solved, each mistake gets its hint."""

import pytest
import torch

from ftcourse.exercises import inside_the_optimizer
from ftcourse.exercises.inside_the_optimizer import check_accumulated_gradient, check_mask_test

from .shown import checker_tests


def masked(gradient, p, rng, scale=None):
    keep = torch.rand(gradient.shape, generator=rng) < p
    return torch.where(keep, gradient * (1 / p if scale is None else scale), 0.0)


def right_gradient(micro, p, rng):
    return masked(sum(micro), p, rng)


def in_place(micro, p, rng):
    for other in micro[1:]:
        micro[0] += other
    return masked(micro[0], p, rng)


WRONG_GRADIENTS = {
    "a mask for each micro-batch": lambda micro, p, rng: sum(masked(g, p, rng) for g in micro),
    "the rescaling by 1/p is missing": lambda micro, p, rng: masked(sum(micro), p, rng, scale=1),
    "multiplied by reserve_p": lambda micro, p, rng: masked(sum(micro), p, rng, scale=p),
    "the mean of the micro-gradients": lambda micro, p, rng: masked(sum(micro) / len(micro), p, rng),
    "rescale once per step": lambda micro, p, rng: masked(sum(micro), p, rng, scale=p ** -len(micro)),
    "sum over all micro-batches": lambda micro, p, rng: masked(micro[-1], p, rng),
    "changes the gradients": in_place,
    "every entry survived": lambda micro, p, rng: sum(micro) / p,
    "should survive": lambda micro, p, rng: masked(sum(micro), 1 - p, rng, scale=1 / p),
    "inf * 0 is NaN": lambda micro, p, rng: (torch.rand(40, 50, generator=rng) < p) * sum(micro) / p,
    "draw from the one given": lambda micro, p, rng: torch.where(torch.rand(40, 50) < p, sum(micro) / p, 0.0),
    "shape should be": lambda micro, p, rng: right_gradient(micro, p, rng).flatten(),
    "a tensor is wanted": lambda micro, p, rng: right_gradient(micro, p, rng).tolist(),
}


def counts(draw, worlds=(2, 3, 4)):
    full = draw(0, 1)
    return [int((torch.cat([draw(rank, ranks) for rank in range(ranks)]) != full).sum()) for ranks in worlds]


def right_test(draw):
    return max(counts(draw))


WRONG_TESTS = {
    "the sum over the numbers of ranks": lambda draw: sum(counts(draw)),
    "entries that agree": lambda draw: 96 - right_test(draw),
    "2 ranks only": lambda draw: max(counts(draw, (2,))),
    "your experiment found 1": lambda draw: 1,
    "a whole number of entries": lambda draw: right_test(draw) > 0,
    "returns a Tensor": lambda draw: torch.tensor(right_test(draw)),
}

EXERCISES = [
    (check_accumulated_gradient, right_gradient, WRONG_GRADIENTS),
    (check_mask_test, right_test, WRONG_TESTS),
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

    assert check_accumulated_gradient(with_bernoulli).right
    assert check_accumulated_gradient(masked_before_the_sum).right


@pytest.mark.parametrize("seed", range(3))
def test_a_verdict_does_not_depend_on_the_global_generator(seed):
    torch.manual_seed(seed)
    first = check_accumulated_gradient(right_gradient)
    torch.manual_seed(seed + 100)
    assert check_accumulated_gradient(right_gradient) == first


def test_the_generators_are_what_the_exercise_needs():
    """Two pass, three fail, one of them with more than two ranks only; all draw the rows they should."""
    found = {name: counts(draw) for name, draw in inside_the_optimizer._generators().items()}
    assert sorted(max(each) > 0 for each in found.values()) == [False, False, True, True, True]
    assert [each[0] == 0 < max(each[1:]) for each in found.values()].count(True) == 1
    for draw in inside_the_optimizer._generators().values():
        for ranks in (1, 2, 3, 4):
            assert [tuple(draw(rank, ranks).shape) for rank in range(ranks)] == [(12 // ranks, 8)] * ranks
