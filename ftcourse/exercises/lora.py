"""Checkers for 09_lora_from_scratch: factoring ΔW into B and A, merging at the weight's precision, and a sweep of two
methods."""

import math

import torch

from . import WrongAnswer, checker, match_known_mistake, require_answer, require_tensor

OPTIMA = ({"full": 2e-5, "lora": 2e-4}, {"full": 0.02, "lora": 0.5}, {"full": 1e-3, "lora": 9e-3})
LOW, HIGH = 1e-8, 1e3  # no sensible sweep leaves this range


@checker
def check_rate_ratio(rate_ratio, validation_loss) -> str:
    """Check `rate_ratio(validation_loss)`: LoRA's best learning rate / full fine-tuning's, each bracketed.

    `validation_loss(method, lr)` of a real model is called only after the answer is right on made-up losses.
    """
    for optima in OPTIMA:

        def made_up(method: str, lr: float, optima=optima) -> float:
            if method not in optima:
                raise WrongAnswer(f"you train with method {method!r}: the two are 'full' and 'lora'.")
            if not LOW < lr < HIGH:
                raise WrongAnswer(f"your sweep reaches a learning rate of {lr:g}: extend it on the side of the best.")
            return 1 + math.log(lr / optima[method]) ** 2

        _judge_ratio(rate_ratio, made_up)
    ratio, best = _judge_ratio(rate_ratio, validation_loss)
    full, lora = best["full"], best["lora"]
    return f"on pocket-base LoRA is best at {lora:.1g} and full fine-tuning at {full:.1g}: {ratio:.0f} times."


def _judge_ratio(rate_ratio, validation_loss) -> tuple[float, dict[str, float]]:
    runs: dict[str, dict[float, float]] = {"full": {}, "lora": {}}

    def recorded(method: str, lr: float) -> float:
        loss = validation_loss(method, lr)
        runs.setdefault(method, {})[lr] = loss
        return loss

    answer = require_answer(rate_ratio(recorded))
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        raise WrongAnswer(f"a number is expected, and your code returns a {type(answer).__name__}.")
    for method, losses in runs.items():
        if not losses:
            raise WrongAnswer(f"you never train with method {method!r}: sweep both.")
        rates, best = sorted(losses), min(losses, key=losses.get)
        if best in (rates[0], rates[-1]):
            raise WrongAnswer(
                f"{method} is best at {best:g}, an edge of the rates that you tried: extend them until it is bracketed."
            )
        place = rates.index(best)
        if max(best / rates[place - 1], rates[place + 1] / best) > 3.1:
            raise WrongAnswer(f"around {method}'s best rate, {best:g}, your steps are larger than a factor of 3.")
    best = {method: min(losses, key=losses.get) for method, losses in runs.items()}
    ratio = best["lora"] / best["full"]
    worst = {method: max(losses, key=losses.get) for method, losses in runs.items()}
    mistakes = {
        1 / ratio: "upside down: divide LoRA's learning rate by full fine-tuning's.",
        best["lora"] - best["full"]: "that is their difference: divide.",
        best["lora"]: "that is LoRA's learning rate alone: divide it by full fine-tuning's.",
        worst["lora"] / worst["full"]: "those are the rates with the highest losses: take the lowest.",
        runs["lora"][best["lora"]] / runs["full"][best["full"]]: "you divide the losses: divide the learning rates.",
    }
    if not math.isclose(answer, ratio, rel_tol=0.01):
        match_known_mistake(float(answer), mistakes, rel_tol=0.01)
        raise WrongAnswer(f"by the losses that you saw it is {ratio:.3g}, and your code returns {answer:.3g}.")
    return ratio, best


@checker
def check_factor(factor) -> str:
    """Check `factor(delta, r, lora_alpha)`: (A, B) so that lora_alpha / r * B @ A is the nearest of rank r."""
    out, inside, r, lora_alpha = 7, 5, 2, 16.0
    generator = torch.Generator().manual_seed(2021)
    change = torch.randn(out, inside, generator=generator)
    given = change.clone()
    answer = require_answer(factor(given, r, lora_alpha))
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise WrongAnswer("return the two: lora_A first, then lora_B.")
    if all(isinstance(each, torch.Tensor) for each in answer) and (
        answer[0].shape == (out, r) and answer[1].shape == (r, inside)
    ):
        raise WrongAnswer("the two are in the other order: lora_A (r × in) first, then lora_B (out × r).")
    lora_A, lora_B = require_tensor(answer[0], (r, inside)), require_tensor(answer[1], (out, r))
    if not torch.equal(given, change):
        raise WrongAnswer("your code changes the matrix it was given: build new ones instead.")
    made = lora_B.double() @ lora_A.double()  # without the scale
    # The reference by another road: what is left of `change` in the span of the top eigenvectors of its Gram matrix.
    wide = change.double()
    values, vectors = torch.linalg.eigh(wide.T @ wide)  # in rising order
    right = wide @ vectors[:, -r:] @ vectors[:, -r:].T
    scale = lora_alpha / r
    # Seven digits of float32, less two for a decomposition of a well conditioned 7 × 5 matrix.
    if torch.allclose(scale * made, right, rtol=1e-4, atol=1e-5):
        return f"times lora_alpha / r = {scale:g}, B A is the nearest matrix of rank {r}."
    flat = vectors[:, -r:] / values[-r:].sqrt()  # the singular values left out
    mistakes = [
        (right, "the scale comes on top: divide B A by lora_alpha / r, so that the layer's output is right."),
        (right * scale, "you multiplied by lora_alpha / r: the layer does that, so divide."),
        (right / lora_alpha, "divide by lora_alpha / r, not by lora_alpha."),
        (
            wide @ flat @ vectors[:, -r:].T / scale,
            "the singular values are missing: give them to one of the two.",
        ),
        (
            wide @ vectors[:, -r:] * values[-r:].sqrt() @ vectors[:, -r:].T / scale,
            "the singular values are in both: give them to one of the two, or their roots to each.",
        ),
        (
            wide @ vectors[:, :r] @ vectors[:, :r].T / scale,
            "those are the smallest singular values: svd gives the largest first, so take the first r.",
        ),
    ]
    for wrong, hint in mistakes:
        if torch.allclose(made, wrong, rtol=1e-4, atol=1e-5):
            raise WrongAnswer(hint)
    raise WrongAnswer("lora_alpha / r * B @ A is not the nearest matrix of rank r: look at U, S and V of ΔW.")


@checker
def check_merge(merge) -> str:
    """Check `merge(W, A, B, lora_alpha, r)`: the merged weight, rounded once, in W's dtype."""
    out, inside, r, lora_alpha = 40, 30, 4, 10.0
    generator = torch.Generator().manual_seed(5)
    W = torch.randn(out, inside, generator=generator).bfloat16()
    A, B = torch.randn(r, inside, generator=generator), 0.2 * torch.randn(out, r, generator=generator)
    given = W.clone()
    answer = require_tensor(merge(given, A.clone(), B.clone(), lora_alpha, r), (out, inside))
    if not torch.equal(given, W):
        raise WrongAnswer("your code changes W itself: return a new tensor instead.")
    if answer.dtype != W.dtype:
        raise WrongAnswer(f"the merged weight should be in W's dtype, {W.dtype}, and yours is {answer.dtype}.")

    def folded(scale: float) -> torch.Tensor:
        change = sum(scale * torch.outer(B[:, k].double(), A[k].double()) for k in range(r))
        return (W.double() + change).to(W.dtype)

    # One entry in a thousand may lie on the border between two bfloat16 numbers, where float32 decides otherwise.
    if _share_equal(answer, folded(lora_alpha / r)) > 0.99:
        return "the sum is taken in float32 and rounded once."
    mistakes = {
        1.0: "the scale is missing: multiply B A by lora_alpha / r.",
        lora_alpha: "lora_alpha alone is too much: multiply by lora_alpha / r.",
        r / lora_alpha: "upside down: the scale is lora_alpha / r.",
        lora_alpha / r**0.5: "that is rank-stabilised LoRA's scale: divide by r, not by its root.",
        -lora_alpha / r: "you subtract: that is how to unmerge.",
        0.0: "W came back as it was: add the change.",
    }
    for scale, hint in mistakes.items():
        if _share_equal(answer, folded(scale)) > 0.9:
            raise WrongAnswer(hint)
    if _share_equal(answer, folded(lora_alpha / r)) > 0.4:
        raise WrongAnswer(
            "rounded more than once: compute B @ A and the sum in float32, and convert to bfloat16 at the very end."
        )
    raise WrongAnswer("not W + lora_alpha / r * B @ A.")


def _share_equal(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one == other).float().mean().item()
