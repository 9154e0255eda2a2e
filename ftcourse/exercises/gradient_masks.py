"""Checkers for 01_gradient_masks: the child gradient, its variance, and descent with fresh masks."""

import torch

from . import WrongAnswer, checker, match_known_mistake, require_tensor


@checker
def check_child_gradient(child_gradient) -> str:
    """Check `child_gradient(gradient, reserve_p, generator)`: kept entries over reserve_p, the rest zero."""
    reserve_p, shape = 0.3, (40, 50)
    generator = torch.Generator().manual_seed(2021)
    gradient = torch.rand(shape, generator=generator) + 0.5  # no zeros: a zero in the result means "dropped"
    given = gradient.clone()
    result = require_tensor(child_gradient(given, reserve_p, generator), shape)
    if not torch.equal(given, gradient):
        raise WrongAnswer("your code changes the gradient it was given: build a new tensor instead.")
    ratio = result / gradient
    if ratio.isnan().any():
        raise WrongAnswer("there is NaN in the result, although every gradient entry was finite.")
    kept = ratio != 0
    share = kept.float().mean().item()
    if share == 1:
        raise WrongAnswer("every entry survived: the mask was not applied, so nothing was dropped.")
    _name_the_amplifier(ratio[kept].mean().item() if share else 0.0, reserve_p)
    if not torch.allclose(ratio[kept], torch.tensor(1 / reserve_p)):
        raise WrongAnswer("the kept entries should all grow by the same factor, 1 / reserve_p.")
    # Five standard errors of a share over 2,000 draws: 0.051. The inverted mask keeps 0.70, far outside.
    if abs(share - (1 - reserve_p)) < 0.051:
        raise WrongAnswer("upside down: you keep entries where the mask is False. Keep those where it is True.")
    if abs(share - reserve_p) > 0.051:
        raise WrongAnswer(f"about {reserve_p:.0%} of the entries should survive, and {share:.1%} did.")
    if torch.equal(child_gradient(gradient, reserve_p, generator) != 0, kept):
        raise WrongAnswer("two calls gave the same mask: draw a fresh one each time, from the generator given.")
    twins = [child_gradient(gradient, reserve_p, torch.Generator().manual_seed(7)) for _ in range(2)]
    if not torch.equal(*twins):
        raise WrongAnswer("two generators with the same seed gave different masks: draw from the one given.")
    if child_gradient(torch.full(shape, torch.inf), reserve_p, generator).isnan().any():
        raise WrongAnswer("inf * 0 is NaN: a dropped entry still poisons the result. Choose with torch.where.")
    if not torch.equal(child_gradient(gradient, 1.0, generator), gradient):
        raise WrongAnswer("at reserve_p = 1 the result should be the gradient itself.")
    return f"{share:.1%} of 2,000 entries survive, each times {1 / reserve_p:.2f}, and inf does not leak."


def _name_the_amplifier(factor: float, reserve_p: float) -> None:
    """Raise `WrongAnswer` for the mean factor of the kept entries if it is one of the usual wrong ones."""
    mistakes = {
        0.0: "every entry is zero: nothing survived.",
        1.0: "the amplifier is missing: divide the kept entries by reserve_p.",
        reserve_p: "you multiplied by reserve_p: the kept entries must grow, so divide by it.",
        1 / (1 - reserve_p): "you divided by 1 - reserve_p, which is dropout's rule: divide by reserve_p.",
    }
    match_known_mistake(factor, mistakes, rel_tol=1e-3)


@checker
def check_child_variance(child_variance) -> str:
    """Check `child_variance(gradient, reserve_p)`: the variance that the mask gives to each entry."""
    reserve_p = 0.3
    gradient = torch.linspace(-2.0, 2.5, 12).reshape(3, 4)
    answer = require_tensor(child_variance(gradient.clone(), reserve_p), gradient.shape)
    # The reference, from the definition: two outcomes, g / p and 0, and their squared distances from g.
    kept, dropped = (gradient / reserve_p - gradient) ** 2, gradient**2
    right = reserve_p * kept + (1 - reserve_p) * dropped
    odds = (1 - reserve_p) / reserve_p
    mistakes = [
        (
            reserve_p * (1 - reserve_p) * gradient**2,
            "that is the variance without the amplifier.",
        ),
        (right.sqrt(), "that is the standard deviation: the variance is its square."),
        (odds * gradient, "square the gradient: a variance has the gradient's unit squared."),
        (odds * gradient.abs(), "square the gradient: a variance has the gradient's unit squared."),
        (gradient**2 / reserve_p, "that is the mean of the squares: subtract the square of the mean."),
        (gradient**2 / odds, "upside down: the variance must grow as reserve_p shrinks."),
        (gradient**2, "reserve_p is missing: at reserve_p = 1 the variance must be zero."),
    ]
    if torch.allclose(answer.to(right.dtype), right, rtol=1e-4):
        return "the mean of the squares minus the square of the mean, entry by entry."
    for wrong, hint in mistakes:
        if torch.allclose(answer.to(wrong.dtype), wrong, rtol=1e-4):
            raise WrongAnswer(hint)
    raise WrongAnswer("not the variance of an entry that is g / reserve_p with chance reserve_p and 0 otherwise.")


@checker
def check_masked_descent(masked_descent) -> str:
    """Check `masked_descent(weight, gradients, reserve_p, lr, generator)`: SGD, a fresh mask at each step."""
    # Step k has gradient 2**k everywhere, and every number is a power of two: so the distance walked, counted
    # in units of lr / p, is an exact integer whose bit k says whether the entry was kept at step k.
    steps, reserve_p, lr, shape = 6, 0.25, 0.5, (30, 40)
    weight = torch.full(shape, 8.0)
    gradients = [torch.full(shape, float(2**step)) for step in range(steps)]
    generator = torch.Generator().manual_seed(5)
    result = require_tensor(masked_descent(weight.clone(), gradients, reserve_p, lr, generator), shape)
    walked = (weight - result) * reserve_p / lr
    drift = walked.mean().item() / sum(2**step for step in range(steps))
    if drift < 0:
        raise WrongAnswer("the weights walk uphill: subtract lr times the gradient.")
    if torch.equal(walked, walked.flatten()[0].expand(shape)):
        raise WrongAnswer("every entry walked the same distance: the mask is missing.")
    # Wanted on average: reserve_p, standard error 0.008. Without the amplifier it is a quarter of that.
    if drift < reserve_p / 2 and not torch.equal(walked, walked.round()):
        raise WrongAnswer("the amplifier is missing: divide the kept entries by reserve_p.")
    bits = torch.stack([(walked.round().long() >> step) & 1 for step in range(steps)])
    if (bits == bits[0]).all():
        raise WrongAnswer("one mask served all steps, so most entries never moved: draw a fresh one each step.")
    if not torch.equal(walked, walked.round()) or (bits.sum(dim=(1, 2)) == 0).any():
        raise WrongAnswer("the distance is not lr times a sum of amplified gradients: use each gradient once.")
    if abs(drift - reserve_p) > 0.06:
        raise WrongAnswer(f"about {reserve_p:.0%} of the entries should move at each step, and {drift:.1%} did.")
    moved = (bits.sum(0) > 0).float().mean().item()
    predicted = 1 - (1 - reserve_p) ** steps
    return f"after {steps} steps {moved:.0%} of all entries moved; 1-(1-p)^{steps} predicts {predicted:.0%}."
