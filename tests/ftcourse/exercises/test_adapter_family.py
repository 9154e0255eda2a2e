"""The checkers of 10_adapter_family: a solution is right, a stub is not solved yet, a wrong answer gets its hint."""

import math

import torch

from ftcourse.exercises.adapter_family import check_dora_weight, check_loraplus_rates, check_neftune

from .shown import checker_tests


def dora(W, A, B, magnitude, scaling):
    direction = W + scaling * B @ A
    return magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)


def noisy(embeddings, alpha, *, shape=None, low=-1.0, width=2.0, gauss=0.0, dims=None):
    B, L, D = embeddings.shape
    bound = alpha / math.sqrt(dims(B, L, D) if dims else L * D)
    if gauss:
        return embeddings + torch.randn_like(embeddings) * bound * gauss
    return embeddings + (low + width * torch.rand(shape or (B, L, D), dtype=embeddings.dtype)) * bound


def rates(names, lr, ratio, part=".lora_B."):
    return {name: lr * ratio if part in name else lr for name in names}


EXERCISES = [
    (
        check_dora_weight,
        dora,
        {
            "that is LoRA": lambda W, A, B, m, s: W + s * B @ A,
            "divide each row by its own length": lambda W, A, B, m, s: m[:, None] * (W + s * B @ A),
            "the length of the whole matrix": lambda W, A, B, m, s: (
                m[:, None] * (W + s * B @ A) / (W + s * B @ A).norm()
            ),
            "not of W": lambda W, A, B, m, s: m[:, None] * (W + s * B @ A) / W.norm(dim=1, keepdim=True),
            "multiplied by scaling": lambda W, A, B, m, s: dora(W, A, B, m, 1.0),
            "of W's shape": lambda W, A, B, m, s: dora(W, A, B, m, s).T,
            "should point where they point": lambda W, A, B, m, s: dora(W, A, -B, m, s),
        },
    ),
    (
        check_neftune,
        noisy,
        {
            "no noise was added": lambda e, alpha: e,
            "return the sum": lambda e, alpha: noisy(torch.zeros_like(e), alpha),
            "never negative": lambda e, alpha: noisy(e, alpha, low=0.0, width=1.0),
            "a noise of its own": lambda e, alpha: noisy(e, alpha, shape=(1, 1, e.shape[2])),
            "that noise is Gaussian": lambda e, alpha: noisy(e, alpha, gauss=1.0),
            "draw it uniformly": lambda e, alpha: noisy(e, alpha, gauss=1 / math.sqrt(3)),
            "the noise reaches": lambda e, alpha: noisy(e, alpha, dims=lambda B, L, D: L),
            "the noise stays below": lambda e, alpha: noisy(e, alpha, dims=lambda B, L, D: B * L * D),
            "equally likely": lambda e, alpha: e + (noisy(e, alpha) - e) ** 3 / (alpha**2 / (e[0].numel())),
            "embeddings' shape": lambda e, alpha: noisy(e, alpha).flatten(0, 1),
        },
    ),
    (
        check_loraplus_rates,
        rates,
        {
            "the other way round": lambda n, lr, ratio: rates(n, lr, ratio, ".lora_A."),
            "A keeps lr": lambda n, lr, ratio: {k: v / ratio for k, v in rates(n, lr, ratio).items()},
            "ratio times as fast": lambda n, lr, ratio: rates(n, lr, 1),
            "and they have": lambda n, lr, ratio: rates(n, 2 * lr, ratio),
            "lora_B in its own name": lambda n, lr, ratio: rates(n, lr, ratio, "lora_B"),
            "for each of the names": lambda n, lr, ratio: [lr] * len(n),
        },
    ),
]

test_solution_is_right, test_stub_is_not_solved_yet, test_wrong_answers = checker_tests(EXERCISES)
