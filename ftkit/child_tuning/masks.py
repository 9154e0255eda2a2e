"""Gradient masks that depend on nothing but seed, optimizer step, parameter name and element.

A sampler with a hidden state gives another mask on another number of processes, and after a resume. Here an
element's random number is a function of its place, so that any process can draw any part of any mask:

1. key: the first 8 bytes (little-endian) of BLAKE2b, digest size 8, over the UTF-8 text
   `{seed}/{step}/{name}`, with both numbers in decimal and the name cleaned of wrapper prefixes;
2. words: Philox4x64-10 with key words (key, 0) and counter words (1 + i // 16, 0, 0, 0), where i is the
   element's flat row-major index in the whole parameter. This is numpy's Philox with that key, which raises its
   counter before the first block;
3. lane: the counter's four 64-bit words are read as sixteen 16-bit numbers, words in order and lowest bits
   first; element i takes number i % 16;
4. the element is kept when its number is below round(reserve_p * 65536).

Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import hashlib
import operator
from collections.abc import Sequence

import numpy as np
import torch

from ftkit._modules import clean_name
from ftkit.dtensor import Region

DRAW_RANGE = 1 << 16
DRAWS_PER_COUNTER = 16
P_TOLERANCE = 2e-5
BLOCK = 1 << 18  # most elements, gaps included, that are drawn to cover several runs
# Drawn at a time: numpy's 64 KiB for them are little enough to come from the same memory each time.
_COUNTERS = 1 << 11

# Longest gap between two runs that is cheaper to draw and throw away than to jump over: starting numpy's
# generator anew takes as long as drawing this many lanes.
_CHEAP_GAP = 1 << 13


def draw_threshold(reserve_p: float) -> int:
    """How many of the 65,536 values of a lane keep their element.

    Raises:
        ValueError: `reserve_p` is not in (0, 1], or so small that lanes cannot tell it from zero.
    """
    if not 0 < reserve_p <= 1:
        raise ValueError(
            f"reserve_p must be in (0, 1], but is {reserve_p}: it is the probability of keeping a gradient "
            "entry, so 0.3 keeps 30 % of them and 1.0 is plain AdamW"
        )
    if reserve_p < P_TOLERANCE:
        raise ValueError(
            f"reserve_p is {reserve_p}, but masks honour it to {P_TOLERANCE} only: use at least that, or "
            "freeze the parameters with requires_grad_(False)"
        )
    return round(reserve_p * DRAW_RANGE)


def effective_p(reserve_p: float) -> float:
    """The probability with which an element is really kept: `reserve_p` rounded to a multiple of 1/65,536.

    Amplification divides by this one, so that the masked gradient's expectation is the gradient.
    """
    return draw_threshold(reserve_p) / DRAW_RANGE


def mask_key(seed: int, step: int, name: str) -> int:
    """The 64-bit key of one parameter's mask at one optimizer step."""
    text = f"{operator.index(seed)}/{operator.index(step)}/{clean_name(name)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def fill_mask(keep: np.ndarray, key: int, threshold: int, region: Region, start: int) -> None:
    """Write the mask of a region's elements from the flat index `start` on into `keep`: bool [any length]."""
    stop = start + len(keep)
    run, pitch = region.run, region.pitch
    if run >= region.numel:  # consecutive in the whole, as every part of rows is
        _fill(keep, key, threshold, region.offset + start)
        return
    bridged = pitch - run <= _CHEAP_GAP
    for first, runs, offset in region.spans(start, stop, BLOCK if bridged else 1):
        # Elements of the group that are wanted: it may begin before `start` and end after `stop`.
        low, high = max(start, first * run), min(stop, (first + runs) * run)
        wanted = keep[low - start : high - start]
        if runs == 1:
            _fill(wanted, key, threshold, offset + low - first * run)
        else:
            rows = np.empty((runs, pitch), bool)
            _fill(rows.reshape(-1)[: (runs - 1) * pitch + run], key, threshold, offset)
            wanted[:] = rows[:, :run].reshape(-1)[low - first * run : high - first * run]


def gradient_mask(
    shape: Sequence[int],
    reserve_p: float,
    *,
    seed: int,
    step: int,
    name: str,
    region: tuple[slice, ...] | None = None,
) -> torch.Tensor:
    """The gradient mask of one parameter at one optimizer step: True where the gradient is kept.

    Args:
        shape: shape of the whole parameter, however it is sharded.
        reserve_p: probability of keeping an element, in (0, 1]; honoured to 2e-5 (see `realised_p`). 1 keeps
            all.
        seed: any integer.
        step: the optimizer step, counted from 1.
        name: the parameter's name as `model.named_parameters()` gives it; wrapper prefixes do not matter.
        region: the part of the parameter that is wanted, as a tuple of slices of the whole (see `Region`).

    Returns:
        bool CPU tensor of the region's shape, equal to the same part of the whole mask.

    Raises:
        ValueError: `reserve_p` cannot be honoured, or the region does not fit the shape.
    """
    threshold = draw_threshold(reserve_p)
    part = Region(shape, region)
    keep = np.ones(part.numel, bool)
    if threshold < DRAW_RANGE:
        key = mask_key(seed, step, name)
        fill_mask(keep, key, threshold, part, 0)
    return torch.from_numpy(keep).view(part.shape)


def _fill(keep: np.ndarray, key: int, threshold: int, first: int) -> None:
    """The mask of consecutive elements of the whole parameter, of which `first` is the first."""
    counter, skip = divmod(first, DRAWS_PER_COUNTER)
    # A list of Python integers would go through float64 from 2^63 on, and lose the key's lowest bits.
    generator = np.random.Philox(key=np.array([key, 0], np.uint64))
    generator.advance(counter)
    done = 0
    while done < len(keep):
        counters = -(-(skip + len(keep) - done) // DRAWS_PER_COUNTER)
        words = generator.random_raw(4 * min(counters, _COUNTERS))
        lanes = words.astype("<u8", copy=False).view("<u2")[skip : skip + len(keep) - done]
        np.less(lanes, threshold, out=keep[done : done + len(lanes)])
        done, skip = done + len(lanes), 0
