"""Local tensors and gradients of DTensors, and where a shard lies in the whole tensor.

A run is a stretch of elements that are contiguous in row-major order, both in a region and in the whole tensor.
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
        region: a slice with step 1 per dimension; missing ones at the end are full. None is the whole tensor.

    Attributes:
        shape: shape of the region.
        numel: elements in the region.
        contiguous: elements in one run.
        stride: elements of the whole tensor from the start of one run to the start of the next.
        runs_per_row: number of successive runs that are `stride` apart.
        offset: flat index of the region's first element in the whole tensor.

    Raises:
        ValueError: a slice has another step, or there are more slices than dimensions.
    """

    def __init__(self, shape: Sequence[int], region: tuple[slice, ...] | None = None):
        full = tuple(int(size) for size in shape)
        slices = () if region is None else tuple(region)
        if len(slices) > len(full):
            raise ValueError(f"region has {len(slices)} slices, but the tensor's shape is {full}")
        if any(not isinstance(part, slice) or part.step not in (None, 1) for part in slices):
            raise ValueError(f"region must be a tuple of slices with step 1, not {region}")
        bounds = [part.indices(size)[:2] for part, size in zip(slices, full, strict=False)]
        bounds += [(0, size) for size in full[len(bounds) :]]

        self._first = [low for low, _ in bounds]
        self.shape = tuple(max(0, high - low) for low, high in bounds)
        self.numel = math.prod(self.shape)
        self._strides = [math.prod(full[dim + 1 :]) for dim in range(len(full))]

        # A run spans every dimension behind the last one that is sliced.
        split = max((dim for dim in range(len(full)) if self.shape[dim] != full[dim]), default=0)
        self._outer = self.shape[:split]
        self.contiguous = math.prod(self.shape[split:])
        self.stride = math.prod(full[split:])
        self.runs_per_row = self._outer[-1] if self._outer else 1
        self.offset = self._offset(0) if self.numel else 0

    def iter_spans(self, start: int, stop: int, limit: int) -> Iterator[tuple[int, int, int]]:
        """Cover elements `start` to `stop` of the region (flat) with groups of evenly spaced runs.

        Args:
            limit: most elements of the whole tensor, gaps included, that a group of several runs may span.

        Yields:
            `(first run, runs, offset)`: index of the group's first run in the region, number of runs, and flat index
            of its first element in the whole tensor.
        """
        if stop <= start:
            return
        run, last = start // self.contiguous, (stop - 1) // self.contiguous
        while run <= last:
            left_in_row = self.runs_per_row - run % self.runs_per_row
            runs = min(left_in_row, last - run + 1, max(1, limit // self.stride))
            yield run, runs, self._offset(run)
            run += runs

    def _offset(self, run: int) -> int:
        index = np.unravel_index(run, self._outer) if self._outer else ()
        index = [int(i) for i in index] + [0] * (len(self.shape) - len(index))
        pairs = zip(self._first, index, self._strides, strict=True)
        return sum((first + i) * stride for first, i, stride in pairs)


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of `tensor`, detached; shares its memory."""
    if isinstance(tensor, DTensor):
        with torch.no_grad():
            return tensor.to_local().detach()
    return tensor.detach()


def local_region(tensor: torch.Tensor) -> Region:
    """The region of the whole tensor that this process holds.

    Raises ValueError where the local tensor has another number of elements than its placement says.
    """
    if not isinstance(tensor, DTensor):
        return Region(tensor.shape)
    sizes, offsets = local_chunk(tensor)
    region = Region(tensor.shape, tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True)))
    held = local_tensor(tensor).shape
    if region.numel != held.numel():
        raise ValueError(f"this process holds {tuple(held)} of {tuple(tensor.shape)}, not the expected {region.shape}")
    return region


def local_gradient(param: torch.Tensor) -> torch.Tensor:
    """This process's part of the gradient of `param`.

    Under tensor parallelism a gradient may have other placements than its parameter, for instance `Partial`; it is
    redistributed to the parameter's. `param.grad` does not change.
    """
    grad = param.grad
    if isinstance(param, DTensor) and grad.placements != param.placements:
        grad = grad.redistribute(param.device_mesh, param.placements)
    return local_tensor(grad)


def shard_like(whole: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    """Shard a plain tensor that is equal on every process like `param`, without communication."""
    if not isinstance(param, DTensor) or isinstance(whole, DTensor):
        return whole.to(param.device)
    sizes, offsets = local_chunk(param)
    part = whole[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))]
    return wrap_like(part.to(param.device).contiguous(), param)


def wrap_like(local: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    """Wrap a local tensor in a DTensor with the layout of `param`, if that is a DTensor."""
    if not isinstance(param, DTensor):
        return local
    mesh, placements = param.device_mesh, param.placements
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=param.shape, stride=param.stride())
