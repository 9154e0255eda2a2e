"""Where a block of a tensor lies in the whole: the arithmetic that lets every shard find its own elements.

A *region* is a tuple of slices of a whole tensor: all of it, some rows, some columns, a block. Both the whole
and the region are read in row-major order. A *run* is a stretch of elements that follow each other in both.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from ._compat import local_chunk


class Region:
    """A rectangular part of a tensor.

    Args:
        shape: shape of the whole tensor.
        region: one slice with step 1 for each dimension, read as Python reads them (negative numbers, open
            ends, ends beyond the tensor); dimensions left out at the end are taken whole. None is the whole
            tensor.

    Attributes:
        shape: shape of the region.
        numel: elements in the region.
        run: elements in one run.
        pitch: elements of the whole tensor from the start of one run to the start of the next, for runs that
            differ only in the last index before the cut dimension.
        offset: flat index of the region's first element in the whole.
        runs_per_row: how many runs follow each other at that pitch.

    Raises:
        ValueError: a slice has another step, or there are more slices than dimensions.
    """

    def __init__(self, shape: Sequence[int], region: tuple[slice, ...] | None = None):
        whole = tuple(int(size) for size in shape)
        slices = () if region is None else tuple(region)
        if len(slices) > len(whole):
            raise ValueError(f"region has {len(slices)} slices, but the tensor's shape is {whole}")
        if any(not isinstance(part, slice) or part.step not in (None, 1) for part in slices):
            raise ValueError(f"region must be a tuple of slices with step 1, not {region}")
        bounds = [part.indices(size)[:2] for part, size in zip(slices, whole, strict=False)]
        bounds += [(0, size) for size in whole[len(bounds) :]]

        self._first = [low for low, _ in bounds]
        self.shape = tuple(max(0, high - low) for low, high in bounds)
        self.numel = math.prod(self.shape)
        self._strides = [math.prod(whole[dim + 1 :]) for dim in range(len(whole))]

        # Behind the last dimension that is cut everything is whole, so a run spans all of that.
        cut = max((dim for dim in range(len(whole)) if self.shape[dim] != whole[dim]), default=0)
        self._outer = self.shape[:cut]
        self.run = math.prod(self.shape[cut:])
        self.pitch = math.prod(whole[cut:])
        self.runs_per_row = self._outer[-1] if self._outer else 1
        self.offset = self._offset(0) if self.numel else 0

    def spans(self, start: int, stop: int, most: int) -> Iterator[tuple[int, int, int]]:
        """Cover elements `start` to `stop` of the region (flat) with groups of evenly spaced runs.

        Args:
            most: the most elements of the whole tensor, gaps included, that one group may reach over, where
                it holds more than one run.

        Yields:
            `(first run, runs, offset)`: index of the group's first run in the region, number of runs at
            `pitch`, and flat offset of the first run's first element in the whole tensor.
        """
        if stop <= start:
            return
        run, last = start // self.run, (stop - 1) // self.run
        while run <= last:
            left_in_row = self.runs_per_row - run % self.runs_per_row
            runs = min(left_in_row, last - run + 1, max(1, most // self.pitch))
            yield run, runs, self._offset(run)
            run += runs

    def _offset(self, run: int) -> int:
        index = np.unravel_index(run, self._outer) if self._outer else ()
        index = [int(i) for i in index] + [0] * (len(self.shape) - len(index))
        pairs = zip(self._first, index, self._strides, strict=True)
        return sum((first + i) * stride for first, i, stride in pairs)


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The part of `tensor` on this process, sharing its memory and outside of autograd."""
    if isinstance(tensor, DTensor):
        with torch.no_grad():
            return tensor.to_local().detach()
    return tensor.detach()


def local_region(tensor: torch.Tensor) -> Region:
    """Where this process's part lies in the whole tensor: all of it, if the tensor is not sharded."""
    if not isinstance(tensor, DTensor):
        return Region(tensor.shape)
    sizes, offsets = local_chunk(tensor)
    region = Region(tensor.shape, tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True)))
    held = local_tensor(tensor).shape
    if region.numel != held.numel():
        raise ValueError(f"this process holds {tuple(held)} of {tuple(tensor.shape)}, not the expected {region.shape}")
    return region


def local_gradient(param: torch.Tensor) -> torch.Tensor:
    """The gradient of what this process holds of `param`.

    Under tensor parallelism a gradient may come with other placements than its parameter, for instance as
    parts of a sum (`Partial`); it is brought to the parameter's first, without a change to `param.grad`.
    """
    grad = param.grad
    if isinstance(param, DTensor) and grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    return local_tensor(grad)


def shard_like(whole: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    """Cut a whole plain tensor, equal on every process, as `param` is cut; no communication."""
    if not isinstance(param, DTensor) or isinstance(whole, DTensor):
        return whole.to(param.device)
    sizes, offsets = local_chunk(param)
    part = whole[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))]
    return wrap_like(part.to(param.device).contiguous(), param)


def wrap_like(local: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    """Make what a process holds of a tensor a DTensor with the layout of `param`, if that is one."""
    if not isinstance(param, DTensor):
        return local
    mesh, placements = param.device_mesh, param.placements
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=param.shape, stride=param.stride())
