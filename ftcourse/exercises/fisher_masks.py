"""Checkers for 03_fisher_masks: Fisher information, one threshold over all tensors, and the bytes of a child."""

import math

import torch

from . import WrongAnswer, checker, match_known_mistake, require_answer, require_tensor


@checker
def check_fisher(fisher_of) -> str:
    """Check `fisher_of(gradients)`: (N, …) gradients of N examples to the mean square of each weight's."""
    generator = torch.Generator().manual_seed(2021)
    gradients = torch.randn(12, 3, 4, generator=generator) + 0.7
    given = gradients.clone()
    answer = require_tensor(fisher_of(given), gradients.shape[1:]).double()
    if not torch.equal(given, gradients):
        raise WrongAnswer("your code changes the gradients it was given: build a new tensor instead.")
    wide = gradients.double()
    mean, variance = wide.mean(0), wide.var(0, unbiased=False)
    right = variance + mean**2  # the mean of the squares, by another road
    if torch.allclose(answer, right, rtol=1e-5):  # float32 sums of a dozen squares: seven digits, less one
        return "each example's gradient is squared first and averaged afterwards."
    mistakes = [
        (
            mean**2,
            "you average first and square then: examples that disagree cancel. Square each one first.",
        ),
        (12 * right, "that is the sum of the squares: divide by the number of examples."),
        (right.sqrt(), "that is the root of the mean square: leave the square."),
        (
            variance,
            "that is the variance: do not subtract the mean, a gradient that all agree on counts too.",
        ),
        (
            wide.var(0),
            "that is the variance: do not subtract the mean, a gradient that all agree on counts too.",
        ),
        (wide.abs().mean(0), "that is the mean absolute gradient: square it instead."),
        (mean, "the squares are missing: opposite gradients cancel."),
    ]
    for wrong, hint in mistakes:
        if torch.allclose(answer, wrong, rtol=1e-5):
            raise WrongAnswer(hint)
    raise WrongAnswer("not the mean over the examples (dimension 0) of the squared gradients.")


@checker
def check_child(child_of) -> str:
    """Check `child_of(scores, reserve_p)`: masks of the largest scores of all tensors together."""
    reserve_p, wanted = 0.1, 20
    generator = torch.Generator().manual_seed(5)
    # 200 different scores. Those of "late" are all small, so that one threshold leaves it nearly empty.
    shapes = {"early": (8, 10), "bias": (40,), "late": (80,)}
    scales = {"early": 1.0, "bias": 0.9, "late": 0.02}
    scores = {
        name: (torch.randperm(math.prod(shape), generator=generator) + 1.0).reshape(shape) * scales[name]
        for name, shape in shapes.items()
    }
    answer = require_answer(child_of({name: score.clone() for name, score in scores.items()}, reserve_p))
    masks = _masks(answer, scores)
    every = sorted((float(x) for score in scores.values() for x in score.flatten()), reverse=True)
    right = {name: score >= every[wanted - 1] for name, score in scores.items()}
    if not _same(masks, right):
        _name_the_child(masks, scores, right, wanted)
    try:
        child_of({name: torch.zeros_like(score) for name, score in scores.items()}, reserve_p)
    except ValueError:
        return f"{wanted} of {len(every)} weights, by one threshold; all zeros are refused."
    except Exception as error:
        raise WrongAnswer(
            f"scores that are all zero should raise a ValueError, and yours raised {type(error).__name__}."
        ) from None
    raise WrongAnswer("scores that are all zero should raise a ValueError: no weight is better than another.")


def _masks(answer, scores: dict) -> dict[str, torch.Tensor]:
    """The answer, if it is a dict of bool tensors in the shapes of the scores."""
    if not isinstance(answer, dict) or answer.keys() != scores.keys():
        raise WrongAnswer(f"a dict with a mask for each of {', '.join(scores)} is wanted.")
    for name, score in scores.items():
        if not isinstance(answer[name], torch.Tensor) or answer[name].dtype != torch.bool:
            raise WrongAnswer(f"{name}: a mask is a tensor of booleans, such as a comparison gives.")
        if answer[name].shape != score.shape:
            raise WrongAnswer(f"{name}: its mask should have the shape {tuple(score.shape)} of its scores.")
    return answer


def _name_the_child(masks: dict, scores: dict, right: dict, wanted: int) -> None:
    """Raise `WrongAnswer` for masks that are not right, with the usual mistake that explains them."""
    if _same(masks, {name: score >= _kth_largest(score) for name, score in scores.items()}):
        raise WrongAnswer("every tensor keeps its own tenth: take one threshold for all tensors together.")
    if _same(masks, {name: ~mask for name, mask in right.items()}):
        raise WrongAnswer("upside down: the child is where the scores are large, not where they are small.")
    kept = sum(int(mask.sum()) for mask in masks.values())
    if kept == wanted - 1 and all(bool((right[name] | ~mask).all()) for name, mask in masks.items()):
        raise WrongAnswer("one weight is missing: the score at the threshold belongs to the child, so use >=.")
    total = sum(mask.numel() for mask in masks.values())
    if kept == wanted:
        raise WrongAnswer(f"{kept} weights are right, but not the ones of largest score.")
    raise WrongAnswer(f"{wanted} of {total} weights should be in the child, and {kept} are.")


def _kth_largest(score: torch.Tensor) -> torch.Tensor:
    return score.flatten().sort(descending=True).values[score.numel() // 10 - 1]


def _same(masks: dict, others: dict) -> bool:
    return all(torch.equal(masks[name], others[name]) for name in others)


@checker
def check_compact_bytes(compact_bytes) -> str:
    """Check `compact_bytes(weights, reserve_p)`: bytes of a child's two float32 moments and its indices."""
    for weights, reserve_p in [(1_000_000, 0.1), (70_000, 0.3), (400, 0.8)]:
        answer = require_answer(compact_bytes(weights, reserve_p))
        if isinstance(answer, bool) or not isinstance(answer, int | float):
            raise WrongAnswer(f"one number is wanted, and your code returns a {type(answer).__name__}.")
        child = weights * reserve_p
        # The child has a whole number of weights, each of twelve bytes: one more or less is allowed.
        if abs(answer - 12 * child) <= 12:
            continue
        hints = {
            8 * child: "only eight bytes a weight of the child: two moments and an index are twelve.",
            4 * child: "only four bytes a weight of the child: two moments and an index are twelve.",
            8 * weights: "that is AdamW's whole state: the child alone has moments.",
            12 * weights: "that is for every weight: only the share reserve_p is in the child.",
            8 * child + weights: "a mask has a byte for each weight: the compact state has indices instead.",
            8 * child + 4 * weights: "only the child's weights have an index, not all of them.",
            16 * child: "an index takes four bytes here, not eight: a tensor under 2**31 elements needs no more.",
            12 * child / 4: "that counts numbers, not bytes: each of them takes four.",
        }
        match_known_mistake(float(answer), hints, rel_tol=1e-6)
        raise WrongAnswer(f"for {weights:,} weights and reserve_p {reserve_p} it should be {12 * child:,.0f} bytes.")
    return "twelve bytes for each weight of the child: less than AdamW's eight for all while p < 2/3."
