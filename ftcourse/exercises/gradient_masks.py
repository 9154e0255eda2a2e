"""Checkers for 01_gradient_masks: the masked gradient, one mask against new ones, and the largest learning rate."""

import math

import torch

from . import WrongAnswer, checker, match_known_mistake, require_answer, require_filled, require_tensor


@checker
def check_masked_gradient(masked_gradient) -> str:
    """Check `masked_gradient(gradient, reserve_p, generator)`: kept entries over reserve_p, the rest zero."""
    reserve_p, shape = 0.3, (40, 50)
    generator = torch.Generator().manual_seed(2021)
    gradient = torch.rand(shape, generator=generator) + 0.5  # no zeros: a zero in the result means "dropped"
    given = gradient.clone()
    result = require_tensor(masked_gradient(given, reserve_p, generator), shape)
    if not torch.equal(given, gradient):
        raise WrongAnswer("your code changes the gradient it was given: build a new tensor instead.")
    ratio = result / gradient
    if ratio.isnan().any():
        raise WrongAnswer("there is NaN in the result, although every gradient entry was finite.")
    kept = ratio != 0
    share = kept.float().mean().item()
    if share == 1:
        raise WrongAnswer("no entry is zero: the mask was not applied, so nothing was dropped.")
    _name_the_factor(ratio[kept].mean().item() if share else 0.0, reserve_p)
    if not torch.allclose(ratio[kept], torch.tensor(1 / reserve_p)):
        raise WrongAnswer("all kept entries should be multiplied by the same factor, 1 / reserve_p.")
    # Five standard errors of a share over 2,000 draws: 0.051. The inverted mask keeps 0.70, far outside.
    if abs(share - (1 - reserve_p)) < 0.051:
        raise WrongAnswer("inverted: you keep entries where the mask is False. Keep those where it is True.")
    if abs(share - reserve_p) > 0.051:
        raise WrongAnswer(f"about {reserve_p:.0%} of the entries should be kept, and {share:.1%} were.")
    if torch.equal(masked_gradient(gradient, reserve_p, generator) != 0, kept):
        raise WrongAnswer("two calls gave the same mask: draw a new one each time, from the generator given.")
    twins = [masked_gradient(gradient, reserve_p, torch.Generator().manual_seed(7)) for _ in range(2)]
    if not torch.equal(*twins):
        raise WrongAnswer("two generators with the same seed gave different masks: draw from the one given.")
    if masked_gradient(torch.full(shape, torch.inf), reserve_p, generator).isnan().any():
        raise WrongAnswer("inf * 0 is NaN: a dropped entry still corrupts the result. Select with torch.where.")
    if not torch.equal(masked_gradient(gradient, 1.0, generator), gradient):
        raise WrongAnswer("at reserve_p = 1 the result should be the gradient itself.")
    return f"{share:.1%} of 2,000 entries are kept, each times {1 / reserve_p:.2f}, and a dropped inf leaves no NaN."


def _name_the_factor(factor: float, reserve_p: float) -> None:
    """Raise `WrongAnswer` for the mean factor of the kept entries if it is one of the usual wrong ones."""
    mistakes = {
        0.0: "every entry is zero: nothing was kept.",
        1.0: "the rescaling is missing: divide the kept entries by reserve_p.",
        reserve_p: "you multiplied by reserve_p: divide by it, so that the expectation stays the gradient.",
        1 / (1 - reserve_p): "you divided by 1 - reserve_p, which is right where p is the share that is dropped: "
        "here it is the share that is kept, so divide by reserve_p.",
    }
    match_known_mistake(factor, mistakes, rel_tol=1e-3)


@checker
def check_mask_schedules(run, adapts, keeps) -> str:
    """Check `run(anew, reserve_p, lr, steps, generator)` -> weights, and two judgements: "once" or "anew".

    The run is gradient descent on ½·w² from 1,000 weights of 1, under one gradient mask or a new one each step.
    adapts: the schedule under which every weight can adapt; keeps: that under which most weights never move.
    """
    reserve_p, lr, steps = 0.25, 0.1, 24
    found = {}
    for name, anew in (("once", False), ("anew", True)):
        weights = require_tensor(run(anew, reserve_p, lr, steps, torch.Generator().manual_seed(11)), (1_000,))
        if not weights.isfinite().all():
            raise WrongAnswer(f"with the mask drawn {name}, weights became infinite: is the step uphill?")
        found[name] = weights.double()
    # A weight that was kept k times is (1 - lr / p)^k: the count of each is read off exactly.
    counts = {name: weights.abs().log() / math.log(1 - lr / reserve_p) for name, weights in found.items()}
    for name, kept in counts.items():
        if (found[name] == 1).all():
            raise WrongAnswer(f"with the mask drawn {name}, no weight moved: take `steps` steps.")
        if (found[name] > 1).any():
            raise WrongAnswer("some weights grew: subtract lr times the masked gradient.")
        if (kept > 0.01).all() and (kept - kept[0]).abs().max() < 0.01:
            raise WrongAnswer("every weight took the same steps: the gradient mask is missing.")
        if (kept - kept.round()).abs().max() > 0.01:
            raise WrongAnswer("a kept weight w should become w - lr * w / reserve_p: the gradient of ½·w² is w.")
    once, anew = counts["once"], counts["anew"]
    if not ((once < 0.01) | ((once - steps).abs() < 0.01)).all():
        raise WrongAnswer("with anew=False a weight should be kept at every step or at none: draw the mask before.")
    if ((anew < 0.01) | ((anew - steps).abs() < 0.01)).all():
        raise WrongAnswer("with anew=True the mask stayed the same: draw it inside the loop.")
    # Five standard errors: of a share over 1,000 draws, and of a mean of 24 of them.
    if abs((once > 0.5).double().mean() - reserve_p) > 0.07 or abs(anew.mean() / steps - reserve_p) > 0.015:
        raise WrongAnswer(f"about {reserve_p:.0%} of the entries should be kept, at each step.")
    if (adapts := require_filled(adapts)) not in found or (keeps := require_filled(keeps)) not in found:
        raise WrongAnswer('`adapts` and `keeps` should each be "once" or "anew".')
    if adapts != "anew":
        raise WrongAnswer(
            "your run is right; look at `adapts` again: under which schedule did nearly all weights move?"
        )
    if keeps != "once":
        raise WrongAnswer("your run is right; look at `keeps` again: under which schedule did most weights not move?")
    moved = {name: (kept > 0.5).double().mean().item() for name, kept in counts.items()}
    loss = {name: weights.square().mean().item() for name, weights in found.items()}
    return (
        f"drawn once, {moved['once']:.0%} of the weights moved and {loss['once']:.0%} of the loss is left; "
        f"drawn anew, {moved['anew']:.1%} moved and {loss['anew']:.1%} is left."
    )


@checker
def check_largest_rate(largest_rate, times_smaller) -> str:
    """Check `largest_rate(reserve_p, rates, generator)` -> the largest rate at which the loss fell; and a judgement.

    times_smaller: by what the largest rate shrinks when reserve_p goes from 1 to 1/4.
    """
    # Plain descent on ½·w² converges for lr / p below 2, so that rates at 1.6 p and 3.2 p lie clear of the limit.
    rates = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]
    found = {}
    for reserve_p in (1.0, 0.5, 0.25):
        answer = require_answer(largest_rate(reserve_p, list(rates), torch.Generator().manual_seed(3)))
        if not isinstance(answer, int | float) or not any(math.isclose(answer, rate) for rate in rates):
            raise WrongAnswer(f"the answer should be one of the rates given, {rates}, and yours is {answer!r}.")
        found[reserve_p] = float(answer)
    if all(math.isclose(rate, 0.1) for rate in found.values()):
        raise WrongAnswer("you return the smallest rate: the question is the largest at which the loss still falls.")
    if all(math.isclose(rate, 1.6) for rate in found.values()):
        raise WrongAnswer("reserve_p made no difference: take masked steps, rescaled by 1 / reserve_p.")
    for reserve_p, rate in found.items():
        if not math.isclose(rate, 1.6 * reserve_p):
            raise WrongAnswer(
                f"at reserve_p = {reserve_p} the loss still falls at {1.6 * reserve_p:g} and grows at "
                f"{3.2 * reserve_p:g}; your function says {rate:g}. Compare the loss after the steps with that before."
            )
    if not math.isclose(require_filled(times_smaller), 4, rel_tol=0.01):
        raise WrongAnswer(
            f"your function is right: it gives {found[1.0]:g} at reserve_p = 1 and {found[0.25]:g} at 0.25. How many "
            "times smaller is the second?"
        )
    return "the largest stable rate of plain descent shrinks with reserve_p: 1.6, 0.8, 0.4 at 1, 0.5, 0.25."
