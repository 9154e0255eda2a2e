"""Seconds and extra memory of one optimizer step: torch's fused AdamW, child-tuning, and its original arithmetic.

As `python -m experiments.optimizer_speed` measures them, without the embedded model, and every figure recorded at once.
"""

import gc

import torch

from experiments.optimizer_speed.optimizers import COMPACT, FREE, FUSED, ORIGINAL, make
from experiments.optimizer_speed.timing import WARM_UP, peak_bytes, seconds, tensors

from .records import Write

CANDIDATES = (FUSED, FREE, COMPACT, ORIGINAL)
SIZES = {False: (1_000_000_000, 10, 12), True: (100_000, 3, 3)}  # by tiny: elements, tensors, rounds
RESERVE_P, FISHER_P = 0.3, 0.1


def measure(device: torch.device, tiny: bool, write: Write) -> None:
    elements, count, repeats = SIZES[tiny]
    write({"elements": elements, "tensors": count, "reserve_p": RESERVE_P, "fisher_p": FISHER_P})
    if device.type == "cuda":  # on a CPU it would need a fresh process each
        for name in CANDIDATES:
            write({"candidate": name, **peak_bytes(name, elements, count, RESERVE_P, FISHER_P, str(device))})
            gc.collect()
    weights, gradients = (tensors(elements, count, device, seed) for seed in (0, 1))
    candidates = [make(name, weights, gradients, RESERVE_P, FISHER_P) for name in CANDIDATES]
    for turn in range(-WARM_UP, repeats):
        taken = {}
        for candidate in candidates:
            candidate.prepare()
            taken[candidate.name] = seconds(candidate.step, device)
        if turn >= 0:
            write({"round": turn, "seconds": taken})
