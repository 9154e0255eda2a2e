"""The checkers of 03_fisher_masks: a solution is right, a stub is empty, a wrong answer gets its own hint."""

import pytest
import torch

from ftcourse.exercises.fisher_masks import check_child, check_experiment, check_peak_bytes

from .shown import checker_tests


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
    return {name: (score >= threshold) & (score > 0) for name, score in scores.items()}


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
    "20 of 200 weights should be kept, and 40 are": lambda scores, p: right_child(scores, 2 * p),
    "a tensor of booleans": changed(torch.Tensor.float),
    "a dict with a mask for each": lambda scores, p: list(right_child(scores, p).values()),
    "its mask should have the shape": changed(torch.flatten),
    "all zero should raise a ValueError": lambda scores, p: {
        name: score >= torch.cat([s.flatten() for s in scores.values()]).topk(round(p * 200)).values[-1]
        for name, score in scores.items()
    },
    "a ValueError, and yours raised RuntimeError": with_another_error,
    "those 5 should be kept, and 200 are": lambda scores, p: {
        name: score >= threshold_of(scores, p) for name, score in scores.items()
    },
    "raised KeyError": lambda scores, p: scores["nothing"],
}

WRONG_BYTES = {
    "training alone": lambda n, p: (8 + 12 * p) * n,
    "scoring alone": lambda n, p: 12 * n,
    "not the sum": lambda n, p: (20 + 12 * p) * n,
    "gradients are missing": lambda n, p: (4 + 12 * p) * n,
    "states alone": lambda n, p: 12 * p * n,
    "come on top": lambda n, p: 8 * n,
    "not eight": lambda n, p: (8 + 8 * p) * n,
    "AdamW on all weights": lambda n, p: 16 * n,
    "counts numbers": lambda n, p: max(12, 8 + 12 * p) * n / 4,
    "it should be 12,000,000 bytes": lambda n, p: 20 * n,
    "one number is wanted": lambda n, p: (12 * n, 8 * n),
}

RANDOM, LARGEST = [2.0, 2.1, 1.9, 2.05], [1.5, 1.61, 1.38, 1.57]  # the second is better by about 0.5
CLOSE = [2.01, 1.98, 2.02, 2.003]


def result(largest, random, verdict):
    return lambda: ({"largest": largest, "random": random}, verdict)


CHOICES = ("largest", "random")


def check_run(experiment):
    return check_experiment(experiment, CHOICES)


WRONG_EXPERIMENTS = {
    "the other way round": result(LARGEST, RANDOM, "worse"),
    "did you pair them": result(LARGEST, RANDOM, "undecided"),
    "means alone decide nothing": result(CLOSE, RANDOM, "better"),
    'should be "better", "worse" or "undecided"': result(LARGEST, RANDOM, "largest"),
    "two things are wanted": lambda: {"largest": LARGEST, "random": RANDOM},
    "should be those of 'largest' and 'random'": lambda: ({"largest": LARGEST}, "better"),
    "same seeds": result(LARGEST, RANDOM[:3], "better"),
    "3 seeds are too few": result(LARGEST[:3], RANDOM[:3], "better"),
    "finite, positive": result([float("nan"), *LARGEST[1:]], RANDOM, "better"),
    "equal to the last digit": result([1.5] * 4, RANDOM, "better"),
    "its own mask": result(RANDOM, RANDOM, "undecided"),
}

EXERCISES = [
    (check_child, right_child, WRONG_CHILDREN),
    (check_peak_bytes, lambda n, p: max(12, 8 + 12 * p) * n, WRONG_BYTES),
    (check_run, result(LARGEST, RANDOM, "better"), WRONG_EXPERIMENTS),
]

test_solution, test_stub, test_wrong_answer = checker_tests(EXERCISES)


def test_other_roads_to_the_right_answer_are_right():
    def with_quantile(scores, reserve_p):
        flat = torch.cat([score.flatten() for score in scores.values()])
        if flat.max() == 0:
            raise ValueError("nothing to choose from")
        threshold = flat.quantile(1 - reserve_p, interpolation="higher")
        return {name: (score >= threshold) & (score > 0) for name, score in scores.items()}

    assert check_child(with_quantile).right
    assert check_peak_bytes(lambda n, p: max(3 * 4 * n, 4 * n + 4 * n + 3 * 4 * round(n * p))).right
    assert check_run(result(CLOSE, RANDOM, "undecided")).right
    assert check_run(result(RANDOM, LARGEST, "worse")).right


def test_an_empty_verdict_is_not_an_attempt():
    assert check_run(result(LARGEST, RANDOM, ...)).not_attempted


@pytest.mark.parametrize("seed", range(2))
def test_a_verdict_does_not_depend_on_the_global_generator(seed):
    torch.manual_seed(seed)
    first = check_child(right_child)
    torch.manual_seed(seed + 100)
    assert check_child(right_child) == first
