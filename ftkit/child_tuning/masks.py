"""Gradient masks from a counter-based RNG: each element's draw is a hash of (seed, step, name, index).

A stateful generator would give other masks on another number of processes and after a resume. Here any process can
compute any part of any mask:

1. key: the first 8 bytes (little-endian) of BLAKE2b, digest size 8, over the UTF-8 text
   `{seed}/{step}/{name}`, with both numbers in decimal and the name cleaned of wrapper prefixes;
2. words: Philox4x64-10 with key words (key, 0) and counter words (1 + i // 16, 0, 0, 0), where i is the
   element's flat row-major index in the whole parameter. This is numpy's Philox with that key, which raises its
   counter before the first block;
3. draws: the counter's four 64-bit words are read as sixteen 16-bit numbers, words in order and lowest bits
   first; element i takes number i % 16;
4. the element is kept when its number is below round(reserve_p * 65536).

Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import hashlib
import operator
import threading
from collections.abc import Sequence

import numpy as np
import torch

from ftkit._modules import clean_name
from ftkit.dtensor import Region

DRAW_RANGE = 1 << 16
DRAWS_PER_COUNTER = 16
P_TOLERANCE = 2e-5
BLOCK = 1 << 18  # most elements, gaps included, that are drawn to cover several runs
_COUNTERS = 1 << 15  # used at a time: their 1 MiB of words stay in a core's cache
_CHEAP_GAP = 1 << 13  # draws that take as long as restarting numpy's generator behind a gap between two runs


def draw_threshold(reserve_p: float) -> int:
    """The bound below which a draw in [0, 65536) keeps its element.

    Raises ValueError where `reserve_p` is not in (0, 1], or less than the resolution of draws.
    """
    validate_fraction(reserve_p)
    if reserve_p < P_TOLERANCE:
        raise ValueError(
            f"reserve_p is {reserve_p}, but masks honour it to {P_TOLERANCE} only: use at least that, or "
            "freeze the parameters with requires_grad_(False)"
        )
    return round(reserve_p * DRAW_RANGE)


def effective_p(reserve_p: float) -> float:
    """`reserve_p` rounded to a multiple of 1/65,536: the probability with which masks keep an element.

    Gradients are rescaled by its inverse, which keeps their expectation unbiased.
    """
    return draw_threshold(reserve_p) / DRAW_RANGE


def validate_fraction(value: float, name: str = "reserve_p") -> None:
    """Raise ValueError unless `value` is in (0, 1]."""
    if not 0 < value <= 1:
        raise ValueError(f"{name} is {value}: give a probability above 0 and at most 1")


def mask_key(seed: int, step: int, name: str) -> int:
    """The 64-bit key of one parameter's mask at one optimizer step."""
    text = f"{operator.index(seed)}/{operator.index(step)}/{clean_name(name)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def fill_mask(keep: np.ndarray, key: int, threshold: int, region: Region, start: int) -> None:
    """Write the mask of a region's elements, from flat index `start` on, into the bool vector `keep`."""
    stop = start + len(keep)
    run, stride = region.contiguous, region.stride
    if run >= region.numel:  # contiguous in the whole parameter, as every block of rows is
        _fill(keep, key, threshold, region.offset + start)
        return
    bridged = stride - run <= _CHEAP_GAP
    for first, runs, offset in region.iter_spans(start, stop, BLOCK if bridged else 1):
        # The group may begin before `start` and end after `stop`.
        low, high = max(start, first * run), min(stop, (first + runs) * run)
        target = keep[low - start : high - start]
        if runs == 1:
            _fill(target, key, threshold, offset + low - first * run)
        else:
            rows = np.empty((runs, stride), bool)
            _fill(rows.reshape(-1)[: (runs - 1) * stride + run], key, threshold, offset)
            target[:] = rows[:, :run].reshape(-1)[low - first * run : high - first * run]


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
        reserve_p: probability of keeping an element, in (0, 1], rounded as in `effective_p`.
        seed: any integer.
        step: the optimizer step, counted from 1.
        name: the parameter's name as `model.named_parameters()` gives it; wrapper prefixes do not matter.
        region: part of the parameter, as a tuple of slices (see `Region`).

    Returns:
        bool CPU tensor of the region's shape, equal to that part of the whole mask.

    Raises:
        ValueError: `reserve_p` is not in (0, 1] or too small, or the region does not fit the shape.
    """
    threshold, part = draw_threshold(reserve_p), Region(shape, region)
    keep = np.ones(part.numel, bool)
    if threshold < DRAW_RANGE:
        fill_mask(keep, mask_key(seed, step, name), threshold, part, 0)
    return torch.from_numpy(keep).view(part.shape)


class _Generator(threading.local):
    """A thread's Philox, whose state is set for each stretch: a new one costs ten times as much, for unused entropy."""

    def __init__(self):
        self._philox, self._counter, self._key = np.random.Philox(0), np.zeros(4, np.uint64), np.zeros(2, np.uint64)
        self._state = {"bit_generator": "Philox", "state": {"counter": self._counter, "key": self._key}}
        self._state |= {"buffer": np.zeros(4, np.uint64), "buffer_pos": 4, "has_uint32": 0, "uinteger": 0}

    def at(self, key: int, counter: int) -> np.random.Philox:
        """The generator with this key, `counter` blocks of four words behind its first."""
        self._key[0], self._counter[0] = key, counter
        self._philox.state = self._state
        return self._philox


_generator = _Generator()


def _fill(keep: np.ndarray, key: int, threshold: int, first: int) -> None:
    """Write the mask of consecutive elements of the whole parameter from flat index `first` on into `keep`."""
    counter, skip = divmod(first, DRAWS_PER_COUNTER)
    generator = _generator.at(key, counter)
    done = 0
    while done < len(keep):
        counters = -(-(skip + len(keep) - done) // DRAWS_PER_COUNTER)
        words = generator.random_raw(4 * min(counters, _COUNTERS))
        draws = words.astype("<u8", copy=False).view("<u2")[skip : skip + len(keep) - done]
        np.less(draws, threshold, out=keep[done : done + len(draws)])
        done, skip = done + len(draws), 0
