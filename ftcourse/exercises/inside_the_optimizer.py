"""Checkers for 02b_inside_the_optimizer: one mask for an accumulated step, and a test of masks on shards."""

import torch

from ftkit.child_tuning import gradient_mask

from . import WrongAnswer, checker, match_known_mistake, require_answer, require_tensor


@checker
def check_accumulated_gradient(accumulated_gradient) -> str:
    """Check `accumulated_gradient(micro_gradients, reserve_p, generator)`: one gradient mask for their sum."""
    reserve_p, shape, micro_batches = 0.3, (40, 50), 4
    generator = torch.Generator().manual_seed(2021)
    # Every entry of every micro-gradient is above zero, so a zero in the result means "dropped".
    gradients = [torch.rand(shape, generator=generator) + 0.5 for _ in range(micro_batches)]
    given = [gradient.clone() for gradient in gradients]
    result = require_tensor(accumulated_gradient(given, reserve_p, generator), shape)
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
        1.0: "the rescaling by 1/p is missing: divide the kept entries by reserve_p.",
        reserve_p: "you multiplied by reserve_p: the kept entries must grow, so divide by it.",
        1 / reserve_p / micro_batches: "that is the mean of the micro-gradients: return their sum.",
        1 / reserve_p**micro_batches: "you rescaled once per micro-batch: rescale once per step.",
    }
    match_known_mistake(ratio[kept].mean().item(), mistakes, rel_tol=1e-3)
    if not torch.allclose(ratio[kept], torch.tensor(1 / reserve_p)):
        raise WrongAnswer("a kept entry should be the sum over all micro-batches, divided by reserve_p.")
    with_inf = [torch.full(shape, torch.inf), *gradients[1:]]
    if accumulated_gradient(with_inf, reserve_p, generator).isnan().any():
        raise WrongAnswer("inf * 0 is NaN: a dropped entry still corrupts the result. Choose with torch.where.")
    twins = [accumulated_gradient(gradients, reserve_p, torch.Generator().manual_seed(7)) for _ in range(2)]
    if not torch.equal(*twins):
        raise WrongAnswer("two generators with the same seed gave different masks: draw from the one given.")
    return f"{share:.1%} of 2,000 entries survive, each with the sum of all {micro_batches} micro-batches."


ROWS, COLUMNS, RESERVE_P = 12, 8, 0.3


@checker
def check_mask_test(most_differing) -> str:
    """Check `most_differing(draw)`: entries of a mask that depend on the number of ranks, at worst of 2, 3 and 4.

    `draw(rank, ranks)` gives the rows that a rank draws of a 12×8 mask cut into `ranks` blocks of rows.
    """
    right = 0
    for name, draw in _generators().items():
        answer = require_answer(most_differing(draw))
        if isinstance(answer, bool) or not isinstance(answer, int):
            raise WrongAnswer(f"return a whole number of entries; your code returns a {type(answer).__name__}.")
        counts = {ranks: _differing(draw, ranks) for ranks in (1, 2, 3, 4)}
        expected = max(counts.values())
        if answer == expected:
            right += 1
            continue
        if answer == sum(counts.values()):
            raise WrongAnswer(f"{name}: that is the sum over the numbers of ranks; return the largest count.")
        if answer == ROWS * COLUMNS - expected:
            raise WrongAnswer(f"{name}: you counted the entries that agree.")
        if answer == counts[2]:
            raise WrongAnswer(f"{name}: you looked at 2 ranks only; its fault shows with 3 or 4.")
        raise WrongAnswer(f"{name}: {expected} entries differ at worst, and your experiment found {answer}.")
    return f"all {right} generators are judged correctly, and two of the five do not depend on the number of ranks."


def _rows(rank: int, ranks: int) -> slice:
    return slice(rank * ROWS // ranks, (rank + 1) * ROWS // ranks)


def _draw_rows(rows: int, seed: int) -> torch.Tensor:
    return torch.rand(rows, COLUMNS, generator=torch.Generator().manual_seed(seed)) < RESERVE_P


def _generators():
    """Five ways to draw a shard's mask, by a name for the learner."""
    key = {"seed": 5, "step": 1, "name": "weight"}

    def hashed(rank, ranks):
        return gradient_mask((ROWS, COLUMNS), RESERVE_P, **key, region=(_rows(rank, ranks), slice(0, COLUMNS)))

    def unsharded_first(rank, ranks):
        return _draw_rows(ROWS, 5)[_rows(rank, ranks)]

    def same_seed(rank, ranks):
        return _draw_rows(ROWS // ranks, 5)

    def seed_and_rank(rank, ranks):
        return _draw_rows(ROWS // ranks, 5 + rank)

    def right_for_two(rank, ranks):
        # Offsets in units of half the weight: correct for one and two ranks, wrong for more.
        first = min(rank * ROWS // 2, ROWS - ROWS // ranks)
        return _draw_rows(ROWS, 5)[first : first + ROWS // ranks]

    return {
        "the hash of each element": hashed,
        "one seed on all ranks": same_seed,
        "the seed plus the rank": seed_and_rank,
        "the unsharded mask, drawn on each rank and cut": unsharded_first,
        "offsets in halves of the weight": right_for_two,
    }


def _differing(draw, ranks: int) -> int:
    """The reference, entry by entry."""
    full = draw(0, 1)
    count = 0
    for rank in range(ranks):
        rows = _rows(rank, ranks)
        count += int((draw(rank, ranks) ^ full[rows]).sum())
    return count
