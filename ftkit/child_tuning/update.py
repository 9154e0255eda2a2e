"""AdamW steps on masked gradients, block by block.

A block is small enough that its weights, gradients and moments stay in the processor's caches from the drawing of the
mask to the update. Blocks are shared out over threads; each thread reuses its temporaries, because a fresh megabyte
costs a page fault for every 4 KiB, which is more than the arithmetic on it.
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

BLOCK_ELEMENTS = 1 << 19  # smaller blocks spend more on calls, larger ones leave the caches
KERNEL_DEVICES = frozenset({"cuda"})  # where ftkit.child_tuning.triton_kernel takes the parameters that fit it
_FUSED_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
_MAX_BUFFER = 1 << 20  # elements; larger blocks are rare, and their memory is given back
_MAX_THREADS = 8  # above that, threads wait for Python's lock more than they work


class Block(NamedTuple):
    """Elements `start` to `stop` of a local parameter, in row-major order.

    `param` and `moments` are flat parts; or, where the parameter is not contiguous, all of it in its own shape. `grad`
    is flat.
    """

    param: torch.Tensor
    grad: torch.Tensor
    moments: list[torch.Tensor | None]
    local: LocalParam
    start: int
    stop: int


def dense_update(local_params: list[LocalParam], hyperparams: dict) -> None:
    """AdamW without a mask, on whole tensors at once: bitwise identical to `torch.optim.AdamW`."""
    local_params = [local for local in local_params if local.param.numel()]
    tensors = [[local.param, _match_strides(local.grad, local.param), *local.moments] for local in local_params]
    adamw_blocks(tensors, [local.step for local in local_params], hyperparams)


def masked_update(local_params: list[LocalParam], hyperparams: dict, threshold: int, scale: float) -> None:
    """AdamW on masked gradients; all parameters have a `mask`, or none has.

    With a `mask`, elements outside it are neither changed nor decayed. Without, gradients whose draw is below
    `threshold` are kept and multiplied by `scale`, and every element is decayed.
    """
    if not local_params:
        return
    masked = local_params[0].mask is not None
    if not masked and not (local_params := _step_with_kernel(local_params, hyperparams, threshold, scale)):
        return

    def update(batch: list[Block]) -> None:
        gradients = _scaled_gradients(batch, 1.0 if masked else scale)
        if masked or threshold < DRAW_RANGE:
            keep = torch.cat([_mask_of(block) for block in batch]) if masked else _draws_below(batch, threshold)
            zero_unmasked_(gradients, keep)
        targets = [block.param for block in batch]
        copied = masked or targets[0].dtype != gradients.dtype  # in a batch, all are of one dtype
        if copied:
            copies = reusable_buffer("weights", gradients.numel(), gradients.dtype, gradients.device)
            targets = [_match_strides(c, p).copy_(p) for c, p in zip(_split(copies, batch), targets, strict=True)]
        tensors = [
            [target, _match_strides(gradient, target), *block.moments]
            for block, target, gradient in zip(batch, targets, _split(gradients, batch), strict=True)
        ]
        adamw_blocks(tensors, [block.local.step for block in batch], hyperparams)
        if copied:
            for block, target in zip(batch, targets, strict=True):
                _copy_back(block, target)

    on_cpu = all(local.param.device.type == "cpu" for local in local_params)
    parallel_map(update, batches(_blocks(local_params)), on_cpu)


def adamw_blocks(tensors: list[list], steps: list[int], hyperparams: dict) -> None:
    """torch's AdamW on lists `[param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq or None]`, one step each."""
    if not tensors:
        return
    params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs = map(list, zip(*tensors, strict=True))
    options = dict(hyperparams)
    if options["fused"] is None:
        options["fused"] = not options["foreach"] and all(p.device.type in _FUSED_DEVICES for p in params)
    # Copies, because torch increments them once for each block; the optimizer keeps the count.
    counts = torch.tensor(steps, dtype=torch.float32) - 1
    places = {p.device if options["fused"] else counts.device for p in params}
    counts = {device: counts.to(device, copy=True).unbind() for device in places}
    device_of = [p.device if options["fused"] else torch.device("cpu") for p in params]
    state_steps = [counts[device][i] for i, device in enumerate(device_of)]
    maxima = max_exp_avg_sqs if options["amsgrad"] else []
    adamw(params, grads, exp_avgs, exp_avg_sqs, maxima, state_steps, **options)


def batches(blocks: Iterable[tuple]) -> Iterator[list[tuple]]:
    """Collect blocks, each led by a tensor of its dtype and device, into lists of about BLOCK_ELEMENTS elements.

    One call into torch costs as much as thousands of elements, and most models have many small tensors.
    """
    batch, size = [], 0
    for block in blocks:
        if batch and (block[0].dtype, block[0].device) != (batch[0][0].dtype, batch[0][0].device):
            yield batch
            batch, size = [], 0
        batch.append(block)
        size += block[0].numel()
        if size >= BLOCK_ELEMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def parallel_map(function: Callable[[object], None], items: Iterable, on_cpu: bool) -> None:
    """Call `function` for every item, in any order, and return when all are done; the first error is raised.

    Work that is not `on_cpu` is done by the calling thread alone: a device has its own parallelism, and a stream
    belongs to a thread.
    """
    items = list(items)
    threads = min(torch.get_num_threads(), _MAX_THREADS)
    if threads == 1 or len(items) < 2 or not on_cpu:
        for item in items:
            function(item)
    else:
        list(_pool(threads).map(function, items))


def zero_unmasked_(values: torch.Tensor, keep: torch.Tensor) -> None:
    """Set `values` to zero in place where the bool tensor `keep`, of the same shape, is False."""
    values.view(_INTEGERS[values.itemsize]).bitwise_and_(_all_bits(keep, values.itemsize))


def copy_masked_(values: torch.Tensor, new: torch.Tensor, keep: torch.Tensor) -> None:
    """Copy `new` into `values` in place where `keep` is True. All have one shape; `new` is overwritten."""
    bits = values.view(_INTEGERS[values.itemsize])
    changed = new.view(bits.dtype).bitwise_xor_(bits)
    bits ^= changed.bitwise_and_(_all_bits(keep, values.itemsize))


def reusable_buffer(use: str, numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised vector, valid until this thread asks for the same `use` again."""
    if device.type != "cpu" or numel > _MAX_BUFFER:
        return torch.empty(numel, dtype=dtype, device=device)  # torch caches device memory itself
    buffers = vars(_buffers)
    if (use, dtype) not in buffers or buffers[use, dtype].numel() < numel:
        buffers[use, dtype] = torch.empty(numel, dtype=dtype)
    return buffers[use, dtype][:numel]


_buffers = threading.local()


def _step_with_kernel(
    local_params: list[LocalParam], hyperparams: dict, threshold: int, scale: float
) -> list[LocalParam]:
    """Step the task-free parameters that the CUDA kernel fits; returns the others."""
    left = []
    for local in local_params:
        kernel = _kernel() if local.param.device.type in KERNEL_DEVICES else None
        if kernel is not None and kernel.fits(local, hyperparams):
            kernel.fused_step(local, hyperparams, threshold, scale)
        else:
            left.append(local)
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
    """The parts of a flat tensor of each block, in its shape."""
    parts = values.split([block.param.numel() for block in batch])
    return [part.view(block.param.shape) for part, block in zip(parts, batch, strict=True)]


def _scaled_gradients(batch: list[Block], scale: float) -> torch.Tensor:
    """Copies of the gradients, block after block, in the moments' dtype and times `scale`: [elements]."""
    sizes, grads = [block.grad.numel() for block in batch], [block.grad for block in batch]
    scaled = reusable_buffer("gradients", sum(sizes), batch[0].moments[0].dtype, grads[0].device)
    for part, grad in zip(scaled.split(sizes), grads, strict=True):
        if grad.dtype == part.dtype:
            torch.mul(grad, scale, out=part)
        else:
            part.copy_(grad).mul_(scale)
    return scaled


def _draws_below(batch: list[Block], threshold: int) -> torch.Tensor:
    """The batch's mask, block after block: bool [elements]."""
    keep = reusable_buffer("keep", sum(block.grad.numel() for block in batch), torch.bool, torch.device("cpu"))
    start = 0
    for block in batch:
        part = keep.numpy()[start : start + block.grad.numel()]
        fill_mask(part, block.local.key, threshold, block.local.region, block.start)
        start += len(part)
    return keep.to(batch[0].param.device)


def _mask_of(block: Block) -> torch.Tensor:
    return block.local.mask.reshape(-1)[block.start : block.stop]


def _copy_back(block: Block, updated: torch.Tensor) -> None:
    """Copy updated values into the parameter; where it has a mask, only inside that."""
    if block.local.mask is None:
        block.param.copy_(updated)
    else:
        copy_masked_(block.param, updated.to(block.param.dtype), _mask_of(block).view(block.param.shape))


def _match_strides(grad: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    """The gradient in its parameter's memory order: torch's fused kernel assumes it."""
    return grad if grad.stride() == param.stride() else torch.empty_like(param, dtype=grad.dtype).copy_(grad)


def _blocks(local_params: list[LocalParam]) -> Iterator[Block]:
    for local in local_params:
        numel, grad = local.param.numel(), local.grad.reshape(-1)
        if numel and not local.param.is_contiguous():
            yield Block(local.param, grad, local.moments, local, 0, numel)
            continue
        param, moments = local.param.view(-1), [None if t is None else t.view(-1) for t in local.moments]
        for start in range(0, numel, BLOCK_ELEMENTS):
            part = slice(start, min(start + BLOCK_ELEMENTS, numel))
            moment_parts = [None if t is None else t[part] for t in moments]
            yield Block(param[part], grad[part], moment_parts, local, start, part.stop)


def _all_bits(keep: torch.Tensor, itemsize: int) -> torch.Tensor:
    """Integers of `itemsize` bytes: all bits set (-1) where `keep` is True, else 0."""
    dtype = _INTEGERS[itemsize]
    if keep.device.type != "cpu":
        return keep.to(dtype).neg_()
    bits = reusable_buffer("bits", keep.numel(), dtype, keep.device).view(keep.shape)
    np.negative(keep.numpy().view(np.int8), out=bits.numpy())  # one pass, at twice the speed of torch's two
    return bits


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads in each of which torch uses that one thread only; they sleep between calls."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "child-tuning", initializer=_use_one_thread)
    started = threading.Barrier(threads)
    list(pool.map(lambda _: started.wait(), range(threads)))
    # The setting is per thread, but threads that start later inherit the value that was set last.
    torch.set_num_threads(before)
    return pool


def _use_one_thread() -> None:
    torch.get_num_threads()  # the first call in a thread resets the number to the process's, so make it now
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):  # a forked process inherits the pool without its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
