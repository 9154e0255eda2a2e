"""Memory that a thread uses again for every block.

A fresh megabyte costs a page fault for every 4 KiB, which is more than the arithmetic on it.
"""

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch.optim.adamw import adamw

from .local_param import LocalParam
from .masks import DRAW_RANGE, fill_mask

_LARGEST = 1 << 20  # elements; larger pieces are rare, and their memory is given back


class _Buffers(threading.local):
    def __init__(self):
        self.buffers: dict[tuple, torch.Tensor] = {}


_buffers = _Buffers()


def reusable_buffer(use: str, numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A vector of any content, valid until this thread asks for the same `use` again."""
    if device.type != "cpu" or numel > _LARGEST:
        return torch.empty(numel, dtype=dtype, device=device)  # torch keeps device memory by itself
    key = (use, dtype)
    if key not in _buffers.buffers or _buffers.buffers[key].numel() < numel:
        _buffers.buffers[key] = torch.empty(numel, dtype=dtype)
    return _buffers.buffers[key][:numel]


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def zero_unmasked_(values: torch.Tensor, keep: torch.Tensor) -> None:
    """Set `values` to zero in place where the bool tensor `keep`, of the same shape, is False."""
    values.view(_INTEGERS[values.itemsize]).bitwise_and_(_all_bits(keep, values.itemsize))


def copy_masked_(values: torch.Tensor, new: torch.Tensor, keep: torch.Tensor) -> None:
    """Take over `new` into `values` where `keep` is True. All are of one shape; `new` is used up."""
    bits = values.view(_INTEGERS[values.itemsize])
    changed = new.view(bits.dtype).bitwise_xor_(bits)
    bits ^= changed.bitwise_and_(_all_bits(keep, values.itemsize))


def _all_bits(keep: torch.Tensor, itemsize: int) -> torch.Tensor:
    """Integers of `itemsize` bytes, all of whose bits are ones where `keep` is True: -1 and 0."""
    dtype = _INTEGERS[itemsize]
    if keep.device.type != "cpu":
        return keep.to(dtype).neg_()
    bits = reusable_buffer("bits", keep.numel(), dtype, keep.device).view(keep.shape)
    np.negative(keep.numpy().view(np.int8), out=bits.numpy())  # one pass, at twice the speed of torch's two
    return bits


_MOST = 8  # above that, threads wait for Python's lock more than they work


def parallel_map(function: Callable[[object], None], items: Iterable, on_cpu: bool) -> None:
    """Call `function` for every item, in any order, and return when all are done; the first error is raised.

    Work that is not `on_cpu` is done by the calling thread alone: a device has its own parallelism, and a
    stream belongs to a thread.
    """
    items = list(items)
    threads = min(torch.get_num_threads(), _MOST)
    if threads == 1 or len(items) < 2 or not on_cpu:
        for item in items:
            function(item)
    else:
        list(_pool(threads).map(function, items))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads in which torch itself starts no others; they sleep between calls."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "child-tuning", initializer=_work_alone)
    started = threading.Barrier(threads)
    list(pool.map(lambda _: started.wait(), range(threads)))
    # The number is each thread's own, but the last one set is also what threads that begin later start with.
    torch.set_num_threads(before)
    return pool


def _work_alone() -> None:
    torch.get_num_threads()  # at its first use in a thread, torch takes the process's number: let that be past
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # a forked process has the pool, but none of its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)

BLOCK_ELEMENTS = 1 << 19  # elements in a block: smaller ones spend more on calls, larger ones leave the caches
KERNEL_DEVICES = frozenset({"cuda"})  # where ftkit.child_tuning.triton_kernel takes the shares that fit it
_FUSED_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})


class Block(NamedTuple):
    """A block of a share: elements `start` to `stop` of it in row-major order.

    `param` and `moments` are flat parts; or all of the parameter in its own shape, where that lies in memory
    in another order. `grad` is flat.
    """

    param: torch.Tensor
    grad: torch.Tensor
    moments: list[torch.Tensor | None]
    share: LocalParam
    start: int
    stop: int


def dense_update(shares: list[LocalParam], arithmetic: dict) -> None:
    """AdamW without a mask, on whole tensors at once: bit for bit what `torch.optim.AdamW` does."""
    shares = [share for share in shares if share.param.numel()]
    tensors = [[share.param, _match_strides(share.grad, share.param), *share.moments] for share in shares]
    adamw_blocks(tensors, [share.step for share in shares], arithmetic)


def masked_update(shares: list[LocalParam], arithmetic: dict, threshold: int, scale: float) -> None:
    """AdamW on masked gradients.

    A share with a `child` keeps the gradient there and is neither changed nor decayed elsewhere. A share
    without keeps elements whose lane is below `threshold`, multiplies them by `scale`, and decays every
    element. All shares are of one kind.
    """
    if not shares:
        return
    child = shares[0].child is not None
    if not child and not (shares := _step_with_kernel(shares, arithmetic, threshold, scale)):
        return

    def update(batch: list[Block]) -> None:
        gradients = _scaled_gradients(batch, 1.0 if child else scale)
        if child or threshold < DRAW_RANGE:
            keep = _mask_indices(batch) if child else _draws_below(batch, threshold)
            zero_unmasked_(gradients, keep)
        targets = [piece.param for piece in batch]
        copied = child or targets[0].dtype != gradients.dtype  # in a batch, all are of one dtype
        if copied:
            copies = reusable_buffer("weights", gradients.numel(), gradients.dtype, gradients.device)
            targets = [_match_strides(c, p).copy_(p) for c, p in zip(_split(copies, batch), targets, strict=True)]
        tensors = [
            [target, _match_strides(gradient, target), *piece.moments]
            for piece, target, gradient in zip(batch, targets, _split(gradients, batch), strict=True)
        ]
        adamw_blocks(tensors, [piece.share.step for piece in batch], arithmetic)
        if copied:
            for piece, target in zip(batch, targets, strict=True):
                _copy_back(piece, target)

    parallel_map(update, batches(_pieces(shares)), all(share.param.device.type == "cpu" for share in shares))


def _step_with_kernel(shares: list[LocalParam], arithmetic: dict, threshold: int, scale: float) -> list[LocalParam]:
    """Step the task-free shares that the CUDA kernel can do; returns the others."""
    left = []
    for share in shares:
        kernel = _kernel() if share.param.device.type in KERNEL_DEVICES else None
        if kernel is not None and kernel.fits(share, arithmetic):
            kernel.fused_step(share, arithmetic, threshold, scale)
        else:
            left.append(share)
    return left


@functools.cache
def _kernel() -> ModuleType | None:
    """The kernel's module, imported when a CUDA tensor is first stepped; None without Triton."""
    try:
        from . import triton_kernel
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        return None
    return triton_kernel


def _split(values: torch.Tensor, batch: list[Block]) -> list[torch.Tensor]:
    """The parts of a flat tensor that belong to the pieces, in their shapes."""
    parts = values.split([piece.param.numel() for piece in batch])
    return [part.view(piece.param.shape) for part, piece in zip(parts, batch, strict=True)]


def _scaled_gradients(batch: list[Block], scale: float) -> torch.Tensor:
    """Copies of the gradients, piece after piece, in the moments' dtype and times `scale`: [elements]."""
    sizes, grads = [piece.grad.numel() for piece in batch], [piece.grad for piece in batch]
    scaled = reusable_buffer("gradients", sum(sizes), batch[0].moments[0].dtype, grads[0].device)
    for part, grad in zip(scaled.split(sizes), grads, strict=True):
        if grad.dtype == part.dtype:
            torch.mul(grad, scale, out=part)
        else:
            part.copy_(grad).mul_(scale)
    return scaled


def _draws_below(batch: list[Block], threshold: int) -> torch.Tensor:
    """The batch's mask, piece after piece: bool [elements]."""
    keep = reusable_buffer("keep", sum(piece.grad.numel() for piece in batch), torch.bool, torch.device("cpu"))
    start = 0
    for piece in batch:
        part = keep.numpy()[start : start + piece.grad.numel()]
        fill_mask(part, piece.share.key, threshold, piece.share.region, piece.start)
        start += len(part)
    return keep.to(batch[0].param.device)


def _mask_indices(batch: list[Block]) -> torch.Tensor:
    return torch.cat([piece.share.child.reshape(-1)[piece.start : piece.stop] for piece in batch])


def _copy_back(piece: Block, updated: torch.Tensor) -> None:
    """Copy what was updated elsewhere into the parameter; of a share with a child, only there."""
    child = piece.share.child
    if child is None:
        piece.param.copy_(updated)
    else:
        child = child.reshape(-1)[piece.start : piece.stop].view(piece.param.shape)
        copy_masked_(piece.param, updated.to(piece.param.dtype), child)


def _match_strides(grad: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    """The gradient in its parameter's memory order: torch's fused kernel takes it for granted."""
    return grad if grad.stride() == param.stride() else torch.empty_like(param, dtype=grad.dtype).copy_(grad)


def batches(pieces: Iterable[tuple]) -> Iterator[list[tuple]]:
    """Gather pieces, whose first entry tells their size and kind, into lists of about BLOCK elements.

    A call of torch's costs as much as thousands of elements, and most models have many small tensors.
    """
    batch, size = [], 0
    for piece in pieces:
        if batch and (piece[0].dtype, piece[0].device) != (batch[0][0].dtype, batch[0][0].device):
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += piece[0].numel()
        if size >= BLOCK_ELEMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def adamw_blocks(tensors: list[list], steps: list[int], arithmetic: dict) -> None:
    """torch's AdamW on lists `[param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq or None]`, one step each."""
    if not tensors:
        return
    params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs = map(list, zip(*tensors, strict=True))
    options = dict(arithmetic)
    if options["fused"] is None:
        options["fused"] = not options["foreach"] and all(p.device.type in _FUSED_DEVICES for p in params)
    # torch counts these up itself, once for each block: they are copies, and the optimizer keeps the count.
    counts = torch.tensor(steps, dtype=torch.float32) - 1
    places = {p.device if options["fused"] else counts.device for p in params}
    counts = {device: counts.to(device, copy=True).unbind() for device in places}
    device_of = [p.device if options["fused"] else torch.device("cpu") for p in params]
    state_steps = [counts[device][i] for i, device in enumerate(device_of)]
    maxima = max_exp_avg_sqs if options["amsgrad"] else []
    adamw(params, grads, exp_avgs, exp_avg_sqs, maxima, state_steps, **options)


def _pieces(shares: list[LocalParam]) -> Iterator[Block]:
    for share in shares:
        numel, grad = share.param.numel(), share.grad.reshape(-1)
        if numel and not share.param.is_contiguous():
            yield Block(share.param, grad, share.moments, share, 0, numel)
            continue
        param, moments = share.param.view(-1), [None if t is None else t.view(-1) for t in share.moments]
        for start in range(0, numel, BLOCK_ELEMENTS):
            part = slice(start, min(start + BLOCK_ELEMENTS, numel))
            block = [None if t is None else t[part] for t in moments]
            yield Block(param[part], grad[part], block, share, start, part.stop)
