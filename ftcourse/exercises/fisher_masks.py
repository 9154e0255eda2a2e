"""Checkers for 03_fisher_masks: one threshold over all tensors, peak memory, and an experiment with its verdict."""

import math

import torch

from ftcourse.intervals import interval

from . import WrongAnswer, checker, match_known_mistake, require_answer, require_filled


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
        _explain(masks, scores, right, wanted)
    try:
        child_of({name: torch.zeros_like(score) for name, score in scores.items()}, reserve_p)
    except ValueError:
        pass
    except Exception as error:
        raise WrongAnswer(
            f"scores that are all zero should raise a ValueError, and yours raised {type(error).__name__}."
        ) from None
    else:
        raise WrongAnswer("scores that are all zero should raise a ValueError: no weight is better than another.")
    few = {name: torch.where(score >= every[4], score, 0.0) for name, score in scores.items()}  # five are not 0
    found = _masks(require_answer(child_of({name: score.clone() for name, score in few.items()}, reserve_p)), scores)
    if not _same(found, {name: score > 0 for name, score in few.items()}):
        kept = sum(int(mask.sum()) for mask in found.values())
        raise WrongAnswer(f"where only 5 scores are not 0, those 5 should be kept, and {kept} are: keep no score of 0.")
    return f"{wanted} of {len(every)} weights, by one threshold; scores of 0 are never kept."


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


def _explain(masks: dict, scores: dict, right: dict, wanted: int) -> None:
    """Raise `WrongAnswer` for masks that are not right, with the usual mistake that explains them."""
    if _same(masks, {name: score >= _kth_largest(score) for name, score in scores.items()}):
        raise WrongAnswer("every tensor keeps its own tenth: take one threshold for all tensors together.")
    if _same(masks, {name: ~mask for name, mask in right.items()}):
        raise WrongAnswer("upside down: the mask keeps large scores, not small ones.")
    kept = sum(int(mask.sum()) for mask in masks.values())
    if kept == wanted - 1 and all(bool((right[name] | ~mask).all()) for name, mask in masks.items()):
        raise WrongAnswer("one weight is missing: the score at the threshold is kept, too: use >=.")
    total = sum(mask.numel() for mask in masks.values())
    if kept == wanted:
        raise WrongAnswer(f"{kept} weights are right, but not the ones of largest score.")
    raise WrongAnswer(f"{wanted} of {total} weights should be kept, and {kept} are.")


def _kth_largest(score: torch.Tensor) -> torch.Tensor:
    return score.flatten().sort(descending=True).values[score.numel() // 10 - 1]


def _same(masks: dict, others: dict) -> bool:
    return all(torch.equal(masks[name], others[name]) for name in others)


@checker
def check_peak_bytes(peak_bytes) -> str:
    """Check `peak_bytes(weights, reserve_p)`: the most that scoring and then training with compact states hold."""
    for weights, reserve_p in [(1_000_000, 0.1), (1_000_000, 0.6), (64_000, 0.25)]:
        answer = require_answer(peak_bytes(weights, reserve_p))
        if isinstance(answer, bool) or not isinstance(answer, int | float):
            raise WrongAnswer(f"one number is wanted, and your code returns a {type(answer).__name__}.")
        scoring, training = 12 * weights, (8 + 12 * reserve_p) * weights
        right = max(scoring, training)
        # The mask keeps a whole number of weights, each with twelve bytes of state: one more or less is allowed.
        if abs(answer - right) <= 12:
            continue
        hints = {
            training: "that is training alone: before it, every weight has a gradient and a score.",
            scoring: "that is scoring alone: at a larger reserve_p, training holds more.",
            scoring + training: "scores are gone when training begins: take the larger of the two, not the sum.",
            4 * weights + 12 * reserve_p * weights: "gradients are missing: each weight has one, in the mask or not.",
            12 * reserve_p * weights: "those are the optimizer's states alone: weights and gradients are held, too.",
            8 * weights: "weights and gradients are eight bytes each weight: scores or states come on top.",
            (8 + 8 * reserve_p) * weights: "two moments and an index are twelve bytes, not eight.",
            16 * weights: "that is AdamW on all weights: the mask's states are fewer.",
            right / 4: "that counts numbers, not bytes: each of them takes four.",
        }
        match_known_mistake(float(answer), hints, rel_tol=1e-4)
        raise WrongAnswer(f"for {weights:,} weights and reserve_p {reserve_p} it should be {right:,.0f} bytes.")
    return "the larger of 12 and 8 + 12 · reserve_p bytes a weight: below a third, scoring sets the peak."


@checker
def check_experiment(experiment, choices: tuple[str, str]) -> str:
    """Check `experiment()`: losses by mask, a list over the same seeds each, and the verdict that they allow.

    `choices` names the masks, the one that the verdict is about first. The verdict is "better", "worse" or "undecided".
    """
    answer = require_answer(experiment())
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[0], dict):
        raise WrongAnswer("two things are wanted: a dict of losses by mask, and a verdict.")
    losses, verdict = answer
    require_filled(verdict)
    if set(losses) != set(choices):
        raise WrongAnswer(f"the losses should be those of {' and '.join(map(repr, choices))}.")
    one, other = (list(losses[name]) for name in choices)
    if len(one) != len(other):
        raise WrongAnswer("both masks need the same seeds: a pair sees the same questions in the same order.")
    if len(one) < 4:
        raise WrongAnswer(f"{len(one)} seeds are too few for an interval that says anything: run four or more.")
    if not all(isinstance(loss, float) and math.isfinite(loss) and loss > 0 for loss in one + other):
        raise WrongAnswer("each loss should be a finite, positive number.")
    if len(set(one)) < len(one) or len(set(other)) < len(other) or set(one) & set(other):
        raise WrongAnswer("some losses are equal to the last digit: does each run use its own seed and its own mask?")
    found = interval([b - a for a, b in zip(one, other, strict=True)])  # above 0: the first has less loss
    right = "better" if found.low > 0 else "worse" if found.high < 0 else "undecided"
    text = f"{found.mean:+.3f} nats per token ({found.low:+.3f} to {found.high:+.3f})"
    if verdict == right:
        return f"{choices[1]} has {text} more loss than {choices[0]}, paired by seed: {right}."
    if verdict not in ("better", "worse", "undecided"):
        raise WrongAnswer('the verdict should be "better", "worse" or "undecided".')
    if right == "undecided":
        raise WrongAnswer(f"the interval of the differences, {text}, contains 0: the means alone decide nothing.")
    if verdict == "undecided":
        raise WrongAnswer(f"the interval of the paired differences, {text}, is clear of 0: did you pair them by seed?")
    raise WrongAnswer(f"the other way round: less loss is better, and {choices[1]} has {text} more.")
