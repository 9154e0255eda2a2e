"""Checkers for 02_child_tuning: the learning rate that keeps the mean update, and a fair comparison over seeds."""

import math

import torch

from ftcourse.intervals import Interval, interval
from ftkit.child_tuning import ChildTuningAdamW

from . import WrongAnswer, checker, match_known_mistake, require_answer, require_filled

STEPS = 400  # of a measurement
TRIED = ((0.001, 0.3, 0.5), (0.002, 0.5, 0.1), (0.01, 0.2, 1.0))  # lr, old p, new p


@checker
def check_matched_lr(matched_lr) -> str:
    """Check `matched_lr(lr, old_p, new_p)`: the learning rate that keeps task-free child-tuning's mean update."""
    for lr, old_p, new_p in TRIED:
        answer = require_answer(matched_lr(lr, old_p, new_p))
        try:
            answer = float(answer)
        except (TypeError, ValueError):
            raise WrongAnswer(f"return a number; your code returns a {type(answer).__name__}.") from None
        ratio = old_p / new_p
        mistakes = {
            lr: "the mean update changes with reserve_p: at an unchanged rate it would grow by √(new_p / old_p).",
            lr * ratio: "the mean update is proportional to √reserve_p, not to reserve_p: 1/p cancels in Adam.",
            lr / math.sqrt(ratio): "upside down: a larger reserve_p needs a lower learning rate.",
            lr / ratio: "upside down, and the square root is missing.",
            math.sqrt(ratio): "lr is missing.",
            lr * math.sqrt(old_p): "that is the rate of the control, AdamW; the new run has a reserve_p, too.",
        }
        if new_p < 1:  # at 1 the last mistake is the answer
            match_known_mistake(answer, mistakes, rel_tol=1e-3)
        before, after = measured_update(lr, old_p), measured_update(answer, new_p)
        # A mean over 2,000 weights and 200 steps varies by under 1 %.
        if not math.isclose(before, after, rel_tol=0.03):
            match_known_mistake(answer, mistakes, rel_tol=1e-3)
            where = f"lr {lr}, old_p {old_p}, new_p {new_p}"
            raise WrongAnswer(f"{where}: the mean update was {before:.2g}; with your answer it is {after:.2g}.")
    return "measured, the mean update stays within 3 %: keep lr · √reserve_p constant."


def measured_update(lr: float, reserve_p: float) -> float:
    """Mean update per step of 2,000 weights with a constant gradient, in the second half of a run."""
    weight = torch.nn.Parameter(torch.zeros(2_000))
    optimizer = ChildTuningAdamW([("weight", weight)], lr=lr, weight_decay=0, reserve_p=reserve_p)
    weight.grad = torch.ones_like(weight)
    for step in range(STEPS):
        if step == STEPS // 2:
            start = weight.detach().clone()
        optimizer.step()
    return (start - weight.detach()).mean().item() / (STEPS - STEPS // 2)


@checker
def check_compare(compare, score, seeds=(0, 1)) -> str:
    """Check `compare(score, seeds)`: the interval of "F" minus "control" per seed, and who has the lower loss.

    It is tried on made-up scores whose answer is known, then on `score(method, seed)` of the notebook.
    """
    for case, (losses, expected) in _made_up().items():
        calls: list[tuple[str, int]] = []

        def recorded(method, seed, losses=losses, calls=calls):
            if method not in losses:
                raise WrongAnswer(f'there is no method {method!r}: they are "F" and "control".')
            calls.append((method, seed))
            return losses[method][seed]

        found, verdict = _pair(require_answer(compare(recorded, range(len(losses["F"])))))
        gaps = [f - control for f, control in zip(losses["F"], losses["control"], strict=True)]
        if len(set(calls)) < 2 * len(gaps):
            raise WrongAnswer("train both methods with every seed that is given.")
        right = interval(gaps)
        if not _close(found, right):
            if _close(found, Interval(-right.mean, -right.high, -right.low)):
                raise WrongAnswer("the sign is reversed: take F's loss minus the control's.")
            raise WrongAnswer("the interval should be that of the differences per seed: F's loss minus the control's.")
        if verdict != expected:
            opposite = {"F": "control", "control": "F"}.get(expected)
            if verdict == opposite:
                raise WrongAnswer(f"{case}: these are losses, and the lower one is better.")
            if expected == "inconclusive":
                raise WrongAnswer(f"{case}: the interval holds zero, so the two methods are not distinguished.")
            raise WrongAnswer(
                f"{case}: the whole interval is on one side of zero, so there is a difference: {expected}."
            )
    found, verdict = _pair(compare(score, seeds))
    return (
        f"on pocket-base with {len(seeds)} seeds, F's loss minus its control's is {found.mean:+.3f} nats "
        f"({found.low:+.3f} to {found.high:+.3f}): {verdict}."
    )


def _pair(answer) -> tuple[Interval, str]:
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise WrongAnswer("return two things: the interval, and the verdict.")
    found, verdict = map(require_filled, answer)
    if not isinstance(found, Interval):
        raise WrongAnswer(f"the first should be what interval(…) returns, and is a {type(found).__name__}.")
    if verdict not in ("F", "control", "inconclusive"):
        raise WrongAnswer(f'the verdict should be "F", "control" or "inconclusive", and is {verdict!r}.')
    return found, verdict


def _close(one: Interval, other: Interval) -> bool:
    pairs = ((one.mean, other.mean), (one.low, other.low), (one.high, other.high))
    return all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) for a, b in pairs)


def _made_up() -> dict[str, tuple[dict[str, list[float]], str]]:
    """Losses by method and seed, and the verdict; the seeds differ far more than the methods."""
    hard = [0.4, 1.9, 0.7, 1.2]  # some seeds draw harder data
    better = {"F": [loss - gap for loss, gap in zip(hard, (0.10, 0.12, 0.09, 0.11), strict=True)], "control": hard}
    worse = {"F": better["control"], "control": better["F"]}
    equal = {"F": [loss + gap for loss, gap in zip(hard, (0.05, -0.06, 0.02, -0.03), strict=True)], "control": hard}
    return {
        "F is about 0.1 lower with every seed": (better, "F"),
        "F is about 0.1 higher with every seed": (worse, "control"),
        "F is sometimes lower, sometimes higher": (equal, "inconclusive"),
    }
