"""Checkers for 02_child_tuning: AdamW's steady step under a gradient mask, and one mask for an accumulated step."""

import math

import torch

from . import WrongAnswer, checker, match_known_mistake, require_answer, require_tensor


@checker
def check_steady_step(steady_step) -> str:
    """Check `steady_step(lr, reserve_p, drift, noise)`: task-free child-tuning's mean step with AdamW."""
    # No two of the mistakes below come to the same number at either of these points.
    for lr, p, drift, noise in ((0.02, 0.3, 0.7, 0.0), (0.01, 0.3, 0.5, 1.2), (0.03, 0.6, -0.4, 0.9)):
        answer = require_answer(steady_step(lr, p, drift, noise))
        try:
            answer = float(answer)
        except (TypeError, ValueError):
            raise WrongAnswer(f"a number is wanted, and your code returns a {type(answer).__name__}.") from None
        # The reference, from the definition: an entry is drift + noise or drift - noise, each half of the
        # time, kept with chance p and then divided by it.
        outcomes = [(p / 2, (drift + noise) / p), (p / 2, (drift - noise) / p), (1 - p, 0.0)]
        mean = sum(chance * value for chance, value in outcomes)
        size = math.sqrt(sum(chance * value**2 for chance, value in outcomes))
        right = lr * mean / size
        if math.isclose(answer, right, rel_tol=1e-3):
            continue
        match_known_mistake(answer, _steady_mistakes(lr, p, drift, noise), rel_tol=1e-3)
        where = f"lr {lr}, reserve_p {p}, drift {drift}, noise {noise}"
        raise WrongAnswer(f"{where}: {right:.4f} is expected, and yours is {answer:.4f}.")
    return "lr · √p · drift / sqrt(drift² + noise²): the gradient mask lowers the drift by √p, whatever the noise."


def _steady_mistakes(lr: float, p: float, drift: float, noise: float) -> dict[float, str]:
    """What the usual mistakes come to, with their hints."""
    size = math.sqrt(drift**2 + noise**2)
    root, sign = math.sqrt(p), math.copysign(1.0, drift)
    mistakes = {
        lr * drift / size: "that is AdamW's step without a gradient mask: the amplifier does not restore it.",
        lr
        * p
        * drift
        / size: "√p is wanted, not p: a share p of the squares is kept, but each is amplified by 1 / p².",
        lr * drift / size / root: "upside down: the step shrinks with reserve_p, it does not grow.",
        lr * drift: "that is plain gradient descent: AdamW divides by the root of the mean square.",
        lr * p * drift: "that is plain gradient descent without the amplifier: AdamW divides by the size.",
        lr * root * drift: "AdamW divides by the gradient's size too, so its unit cancels.",
        root * drift / size: "lr is missing.",
    }
    if noise:
        mistakes |= {
            lr * root * sign: "that leaves the noise out: the mean square holds the variance as well.",
            lr * root * drift / noise: "the mean square is noise² plus drift², not noise² alone.",
            lr * root * drift / (abs(drift) + noise): "add squares: the mean square is drift² + noise².",
            lr * root * drift / size**2: "the root is missing: AdamW divides by sqrt(v).",
        }
    return mistakes


@checker
def check_accumulated_child(accumulated_child) -> str:
    """Check `accumulated_child(micro_gradients, reserve_p, generator)`: one gradient mask for their sum."""
    reserve_p, shape, micro_batches = 0.3, (40, 50), 4
    generator = torch.Generator().manual_seed(2021)
    # Every entry of every micro-gradient is above zero, so a zero in the result means "dropped".
    gradients = [torch.rand(shape, generator=generator) + 0.5 for _ in range(micro_batches)]
    given = [gradient.clone() for gradient in gradients]
    result = require_tensor(accumulated_child(given, reserve_p, generator), shape)
    if not all(torch.equal(*pair) for pair in zip(given, gradients, strict=True)):
        raise WrongAnswer("your code changes the gradients it was given: build new tensors instead.")
    total = sum(gradients)
    ratio = result / total
    kept = ratio != 0
    share = kept.float().mean().item()
    if share == 1:
        raise WrongAnswer("every entry survived: the gradient mask was not applied.")
    # Five standard errors of a share over 2,000 draws: 0.051.
    escaped = (1 - reserve_p) ** micro_batches
    if abs(share - (1 - escaped)) < 0.051:
        raise WrongAnswer(f"{share:.0%} survived: you drew a mask for each micro-batch. Sum first, then draw one.")
    if abs(share - reserve_p) > 0.051:
        raise WrongAnswer(f"about {reserve_p:.0%} of the entries should survive, and {share:.1%} did.")
    mistakes = {
        1.0: "the amplifier is missing: divide the kept entries by reserve_p.",
        reserve_p: "you multiplied by reserve_p: the kept entries must grow, so divide by it.",
        1 / reserve_p / micro_batches: "that is the mean of the micro-gradients: their sum is wanted.",
        1 / reserve_p**micro_batches: "you amplified once per micro-batch: amplify once per step.",
    }
    match_known_mistake(ratio[kept].mean().item(), mistakes, rel_tol=1e-3)
    if not torch.allclose(ratio[kept], torch.tensor(1 / reserve_p)):
        raise WrongAnswer("a kept entry should be the sum over all micro-batches, divided by reserve_p.")
    poisoned = [torch.full(shape, torch.inf), *gradients[1:]]
    if accumulated_child(poisoned, reserve_p, generator).isnan().any():
        raise WrongAnswer("inf * 0 is NaN: a dropped entry still poisons the result. Choose with torch.where.")
    twins = [accumulated_child(gradients, reserve_p, torch.Generator().manual_seed(7)) for _ in range(2)]
    if not torch.equal(*twins):
        raise WrongAnswer("two generators with the same seed gave different masks: draw from the one given.")
    return f"{share:.1%} of 2,000 entries survive, each with the sum of all {micro_batches} micro-batches."
