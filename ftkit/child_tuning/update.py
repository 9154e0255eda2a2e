"""AdamW steps on masked gradients, block by block.

A batch of blocks is small enough that its gradients and mask stay in the processor's caches from the drawing to the
update. Batches are shared out over threads, each of which reuses its temporaries, because a fresh megabyte costs a page
fault for every 4 KiB, which is more than the arithmetic on it. Threads call torch as little as they can: after every
operation, even one without arithmetic, a thread waits for Python's lock, and to be woken up takes longer than the
operation.
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

from ftkit._compat import fused_adamw

from .local_param import LocalParam
from .masks import DRAW_RANGE, fill_mask

BLOCK_ELEMENTS = 1 << 19  # smaller batches spend more on calls, larger ones leave the caches
KERNEL_DEVICES = frozenset({"cuda"})  # where ftkit.child_tuning.triton_kernel takes the parameters that fit it
_FUSED_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
_ALIGNED = 64  # elements
_MIN_SHARED = 1 << 21  # elements; for fewer, only torch's threads share, which still wait busily for its next operation
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
    masked = any(local.mask is not None for local in local_params)
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

    parallel_map(update, _batches(local_params))


def adamw_blocks(tensors: list[list], steps: list[int], hyperparams: dict) -> None:
    """torch's AdamW on lists `[param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq or None]`, one step each."""
    if not tensors:
        return
    params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs = map(list, zip(*tensors, strict=True))
    options = dict(hyperparams)
    if options["fused"] is None:
        options["fused"] = not options["foreach"] and all(p.device.type in _FUSED_DEVICES for p in params)
    maxima = max_exp_avg_sqs if options["amsgrad"] else []
    if options["fused"] and all(p.device.type == "cpu" for p in params):
        counts = {step: torch.tensor(float(step)) for step in set(steps)}
        fused_adamw(params, grads, exp_avgs, exp_avg_sqs, maxima, [counts[step] for step in steps], options)
        return
    # Copies, because torch increments them once for each batch; the optimizer keeps the count.
    counts = torch.tensor(steps, dtype=torch.float32) - 1
    places = {p.device if options["fused"] else counts.device for p in params}
    counts = {device: counts.to(device, copy=True).unbind() for device in places}
    device_of = [p.device if options["fused"] else torch.device("cpu") for p in params]
    state_steps = [counts[device][i] for i, device in enumerate(device_of)]
    adamw(params, grads, exp_avgs, exp_avg_sqs, maxima, state_steps, **options)


def parts(sizes: list[int], threads: int = 1) -> Iterator[list[tuple[int, int, int]]]:
    """Cut vectors of these sizes into parts for `threads` to share: lists of `(vector, start, stop)`.

    Parts are of about the same size, at most BLOCK_ELEMENTS, and there are equally many for every thread. A part may
    have several vectors: one call into torch costs as much as thousands of elements, and most models have many small
    tensors. A vector is cut at multiples of 64 elements, so that torch's vectorised loops begin and end as in the whole
    vector: a cut changes no bit of a result.
    """
    total = sum(sizes)
    count = max(-(-total // (BLOCK_ELEMENTS * threads)), 1) * threads
    limit = max(-(-total // (count * _ALIGNED)), 1) * _ALIGNED
    part, left = [], limit
    for vector, size in enumerate(sizes):
        start = 0
        while start < size:
            stop = start + left // _ALIGNED * _ALIGNED if start + left < size else size
            if stop > start:
                part.append((vector, start, stop))
            start, left = stop, left - (stop - start)
            if left < _ALIGNED:
                yield part
                part, left = [], limit
    if part:
        yield part


def parallel_map(function: Callable[[list[Block]], None], batches: Iterable[list[Block]]) -> None:
    """Call `function` for every batch, in any order, and return when all are done; the first error is raised.

    Batches on a device are done by the calling thread alone: a device has its own parallelism, and a stream belongs to
    a thread.
    """
    batches = list(batches)
    elements = sum(block.grad.numel() for batch in batches for block in batch)
    threads = _threads(elements, all(block.grad.device.type == "cpu" for batch in batches for block in batch))
    if threads == 1:
        for batch in batches:
            function(batch)
    else:
        list(_pool(threads).map(function, batches))


def _threads(elements: int, on_cpu: bool) -> int:
    """How many threads of Python share so many elements."""
    return min(torch.get_num_threads(), _MAX_THREADS) if on_cpu and elements >= _MIN_SHARED else 1


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
    if device.type != "cpu" or numel > BLOCK_ELEMENTS:
        return torch.empty(numel, dtype=dtype, device=device)  # torch caches device memory itself
    buffers = vars(_buffers)
    if (use, dtype) not in buffers or buffers[use, dtype][0].numel() < numel:
        buffers[use, dtype] = [torch.empty(numel, dtype=dtype)] * 2
    whole, last = buffers[use, dtype]
    if last.numel() != numel:
        last = buffers[use, dtype][1] = whole[:numel]
    return last


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
    grads, dtype = [block.grad for block in batch], batch[0].moments[0].dtype
    scaled = reusable_buffer("gradients", sum(grad.numel() for grad in grads), dtype, grads[0].device)
    if len(grads) == 1 and grads[0].dtype == dtype:
        return torch.mul(grads[0], scale, out=scaled)
    return torch.cat(grads, out=scaled).mul_(scale)


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


def _batches(local_params: list[LocalParam]) -> Iterator[list[Block]]:
    """All elements, in batches of one dtype and device."""
    kinds = {}
    for local in local_params:
        if local.param.is_contiguous():
            kinds.setdefault((local.param.dtype, local.param.device), []).append(local)
        elif local.param.numel():
            yield [Block(local.param, local.grad.reshape(-1), local.moments, local, 0, local.param.numel())]
    for (_, device), same in kinds.items():
        vectors = [[_flat(t) for t in (local.param, local.grad.contiguous(), *local.moments)] for local in same]
        sizes = [local.param.numel() for local in same]
        for part in parts(sizes, _threads(sum(sizes), device.type == "cpu")):
            yield [_block(same[index], vectors[index], start, stop) for index, start, stop in part]


def _flat(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return tensor if tensor is None or tensor.dim() == 1 else tensor.view(-1)


def _block(local: LocalParam, vectors: list[torch.Tensor | None], start: int, stop: int) -> Block:
    if stop - start < local.param.numel():
        vectors = [None if vector is None else vector[start:stop] for vector in vectors]
    param, grad, *moments = vectors
    return Block(param, grad, moments, local, start, stop)


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
