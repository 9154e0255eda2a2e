"""Checkers for 09_lora_from_scratch: counting, factoring a change into B and A, merging at the weight's precision."""

import torch

from . import WrongAnswer, checker, match_known_mistake, require_answer, require_tensor


@checker
def check_count(count_lora_parameters) -> str:
    """Check `count_lora_parameters(shapes, r)`: r rows of A and r columns of B for each (out, in)."""
    cases = [([(320, 128), (128, 320), (64, 128)], 4), ([(1000, 1000)], 8)]
    for shapes, r in cases:
        answer = require_answer(count_lora_parameters(list(shapes), r))
        if isinstance(answer, bool) or not isinstance(answer, int | float):
            raise WrongAnswer(f"a number is wanted, and your code returns a {type(answer).__name__}.")
        right = sum(r * sum(shape) for shape in shapes)
        if answer == right:
            continue
        outs, ins = sum(o for o, _ in shapes), sum(i for _, i in shapes)
        mistakes = {
            r * sum(shapes[0]): "that is the first matrix alone: add up all shapes.",
            r * sum(shapes[-1]): "that is the last matrix alone: add up all shapes.",
            r * ins: "that counts A alone: B has out × r numbers more.",
            r * outs: "that counts B alone: A has r × in numbers more.",
            sum(o * i for o, i in shapes): "that counts W, which is frozen: count A and B.",
            right + sum(o * i for o, i in shapes): "W is frozen: count A and B alone.",
            right + r * r * len(shapes): "there is no r × r matrix between them: B follows A directly.",
            sum(r * o * i for o, i in shapes): "A is r × in and B is out × r: add the two, do not multiply.",
        }
        match_known_mistake(float(answer), mistakes)
        raise WrongAnswer(f"for {shapes} at r = {r} it should be {right:,}, and yours is {answer:,}.")
    return "r × (in + out) for each matrix: 16,000 beside 1,000 × 1,000 at r = 8."


@checker
def check_factor(factor) -> str:
    """Check `factor(change, r, lora_alpha)`: (A, B) so that lora_alpha / r * B @ A is the nearest of rank r."""
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
    raise WrongAnswer("lora_alpha / r * B @ A is not the nearest matrix of rank r: look at U, S and V of the change.")


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
        raise WrongAnswer("your code changes W itself, and then nothing is left to compare with: build a new one.")
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
            "rounded more than once: take B A and the sum in float32, and go to bfloat16 at the very end."
        )
    raise WrongAnswer("not W + lora_alpha / r * B @ A.")


def _share_equal(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one == other).float().mean().item()
