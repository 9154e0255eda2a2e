"""Checkers for 13_ddp_to_fsdp: bytes gathered at once, all-gathers in a step, and the norm behind clipping."""

import math

from . import WrongAnswer, checker, match_known_mistake, require_answer


@checker
def check_peak_gathered(peak_gathered) -> str:
    """Check `peak_gathered(layers, root, per_layer)`: bytes of whole parameters at the peak of a forward pass."""
    layers, root = [100, 300, 200], 50
    value = require_answer(peak_gathered(list(layers), root, True))
    wrong = {
        300: "the root's own parameters (embeddings, head) stay gathered while a layer computes: add them.",
        650: "that is the whole model; wrapped layer by layer, one layer is whole at a time.",
        250: "the layers differ in size, and the peak is in the largest, not in the last.",
        150: "the layers differ in size, and the peak is in the largest, not in the first.",
        600: "one layer is whole at a time: take the largest, not the sum.",
    }
    match_known_mistake(float(value), wrong)
    if value != 350:
        raise WrongAnswer(f"layers of 100, 300 and 200 bytes and a root of 50 peak at 350, and yours at {value}.")
    value = require_answer(peak_gathered(list(layers), root, False))
    if value != 650:
        raise WrongAnswer(f"with one wrapper around the model all 650 bytes are whole at once, and yours are {value}.")
    others = [float(require_answer(peak_gathered([70, 20, 10, 40], 5, each))) for each in (True, False)]
    if others != [75, 145]:
        raise WrongAnswer(
            "right for the example only: with layers of 70, 20, 10, 40 and a root of 5 it is 75, or 145 in one wrapper."
        )
    return "the root and the largest layer; with a single wrapper, all of it."


@checker
def check_all_gathers(all_gathers) -> str:
    """Check `all_gathers(layers, reshard_after_forward)`: how many all-gathers one training step takes."""
    value = require_answer(all_gathers(4, True))
    wrong = {
        8: "the root gathers too, once: its own parameters belong to no layer.",
        5: "a layer that was resharded after its forward pass is gathered again for its backward pass.",
        10: "the root is not resharded after its forward pass: it gathers once, not twice.",
        4: "count the backward pass and the root as well.",
    }
    match_known_mistake(float(value), wrong)
    if value != 9:
        raise WrongAnswer(f"4 layers take 2 · 4 + 1 = 9 all-gathers, and yours are {value}.")
    value = require_answer(all_gathers(4, False))
    if value == 9:
        raise WrongAnswer("without resharding a layer is still whole when its backward pass comes: 4 + 1 = 5.")
    if value != 5:
        raise WrongAnswer(f"without resharding, each of 4 layers and the root gather once, and yours {value} times.")
    if require_answer(all_gathers(12, True)) != 25:
        raise WrongAnswer("right for 4 layers, and not for 12: use the argument.")
    if require_answer(all_gathers(12, False)) != 13:
        raise WrongAnswer("without resharding, 12 layers and the root gather 13 times.")
    return "two for each layer that is resharded, one for the root: less memory is paid for in traffic."


@checker
def check_clip_factor(clip_factor) -> str:
    """Check `clip_factor(shard_norms, max_norm)`: what every rank multiplies its gradients by."""
    value = float(require_answer(clip_factor([3.0, 4.0], 1.0)))
    wrong = {
        1 / 7: "norms do not add up: their squares do.",
        1 / 3.5: "a mean of norms is no norm: add the squares and take the root.",
        1 / 4: "the largest shard's norm is too small: all shards belong to the one norm.",
        1 / 3: "all ranks must use the same norm, over all shards, not over the first.",
        1 / 25: "take the root of the sum of squares.",
        5.0: "that is the norm; the factor is max_norm divided by it.",
    }
    match_known_mistake(value, wrong, rel_tol=1e-4)
    if not math.isclose(value, 0.2, rel_tol=1e-4):  # torch adds 1e-6 to the norm
        raise WrongAnswer(f"shards of norms 3 and 4 have the norm 5, so the factor is 0.2, and yours is {value:.3f}.")
    value = float(require_answer(clip_factor([0.3, 0.4], 1.0)))
    if math.isclose(value, 2.0, rel_tol=1e-4):
        raise WrongAnswer("a gradient that is smaller than max_norm is left alone: the factor is at most 1.")
    if not math.isclose(value, 1.0, rel_tol=1e-4):
        raise WrongAnswer(f"the norm 0.5 is below max_norm, so the factor is 1, and yours is {value:.3f}.")
    if not math.isclose(float(require_answer(clip_factor([2.0, 3.0, 6.0], 3.5))), 0.5, rel_tol=1e-4):
        raise WrongAnswer("norms 2, 3 and 6 clipped to 3.5 give 0.5: use every shard, and max_norm.")
    return "one norm over all shards, and the same factor on every rank."
