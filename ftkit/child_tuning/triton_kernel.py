"""One Triton kernel for the whole task-free step on CUDA: draw, mask, rescale, update the moments, decay, step.

Each element is read once and written once, and draws stay in registers. Key, counters and draws are those of
`ftkit.child_tuning.masks` (`tl.philox` with 64-bit counters is numpy's generator), so a step here and a step on a CPU
keep the same elements. Computed in float32, in the order of torch's fused AdamW, with correctly rounded division and
square root.

Tests run the kernel in Triton's interpreter (`TRITON_INTERPRET=1`, set before the import) and compile it for two CUDA
architectures; `python -m experiments.optimizer_speed` measures its time on a GPU.

Philox: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import functools
import math

import torch
import triton
import triton.language as tl

from .local_param import LocalParam
from .masks import DRAWS_PER_COUNTER

COUNTERS = 64  # drawn by one program: 1,024 elements
_WEIGHTS = frozenset({torch.float32, torch.bfloat16, torch.float16})
_OLDEST_CUDA = (8, 0)  # the first compute capability with bfloat16 arithmetic


def fits(local: LocalParam, hyperparams: dict) -> bool:
    """Whether the kernel can do this parameter's step.

    It needs float32 moments, weights of at most 32 bits, contiguous tensors, a region that is contiguous in the whole
    parameter, and a learning rate that is a number, because one in a tensor would force a synchronisation.
    """
    moments = [moment for moment in local.moments if moment is not None]
    return (
        local.mask is None
        and local.mask_indices is None
        and not hyperparams["foreach"]
        and hyperparams["fused"] is not False
        and not isinstance(hyperparams["lr"], torch.Tensor)
        and local.param.dtype in _WEIGHTS
        and local.region.contiguous >= local.region.numel
        and all(moment.dtype == torch.float32 for moment in moments)
        and all(tensor.is_contiguous() for tensor in (local.param, *moments))
        and _new_enough(local.param.device)
    )


def fused_step(local: LocalParam, hyperparams: dict, threshold: int, scale: float) -> None:
    """One step, in place, of a parameter that `fits`.

    Args:
        hyperparams: as `torch.optim.adamw.adamw` takes it: lr, beta1, beta2, eps, weight_decay, amsgrad,
            maximize.
        threshold: gradients whose draw is below it are kept, in [0, 65536].
        scale: factor of the kept gradients.
    """
    numel = local.param.numel()
    if not numel:
        return
    first, skip = divmod(local.region.offset, DRAWS_PER_COUNTER)
    lr, beta1, beta2 = hyperparams["lr"], hyperparams["beta1"], hyperparams["beta2"]
    exp_avg, exp_avg_sq, maximum = local.moments
    programs = -(-(skip + numel) // (DRAWS_PER_COUNTER * COUNTERS))
    with torch.cuda.device_of(local.param):  # a launch goes to the current device
        child_tuning_step[(programs,)](
            local.param,
            local.grad.contiguous(),
            exp_avg,
            exp_avg_sq,
            exp_avg_sq if maximum is None else maximum,
            numel,
            local.key,
            1 + first,  # numpy raises its counter before the first block
            threshold,
            -scale if hyperparams["maximize"] else scale,
            float(beta1),
            float(1 - beta1),
            float(beta2),
            float(1 - beta2),
            float(lr / (1 - beta1**local.step)),
            math.sqrt(1 - beta2**local.step),
            float(hyperparams["eps"]),
            float(lr * hyperparams["weight_decay"]),
            SKIP=skip,
            AMSGRAD=hyperparams["amsgrad"],
            COUNTERS=COUNTERS,
            enable_fp_fusion=False,  # Triton's default for it changes between versions
        )


@triton.jit
def draw_numbers(key, counters):
    """The sixteen 16-bit draws of each counter: uint64 [C, 16] from uint64 [C]."""
    zeros = counters * 0
    a, b, c, d = tl.philox(key, counters, zeros, zeros, zeros)  # each uint64 [C]
    draw = tl.arange(0, 16)[None, :]
    low = tl.where(draw < 4, a[:, None], b[:, None])
    high = tl.where(draw < 12, c[:, None], d[:, None])
    words = tl.where(draw < 8, low, high)
    return (words >> ((draw % 4) * 16).to(tl.uint64)) & 0xFFFF


# Triton recompiles a kernel for integers that it treats as special: 1, and multiples of 16. That pays for `numel`
# alone: where it is such a multiple and SKIP is 0, several elements are loaded at once.
@triton.jit(do_not_specialize=["key", "first_counter", "threshold"])
def child_tuning_step(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    max_exp_avg_sq,
    numel: tl.int64,
    key: tl.uint64,
    first_counter: tl.uint64,
    threshold: tl.int32,
    scale: tl.float32,
    beta1: tl.float32,
    rest1: tl.float32,  # 1 - beta1, subtracted in double precision
    beta2: tl.float32,
    rest2: tl.float32,
    step_size: tl.float32,  # lr over the first moment's bias correction
    correction2: tl.float32,  # square root of the second moment's bias correction
    eps: tl.float32,
    decay: tl.float32,  # lr times weight decay
    SKIP: tl.constexpr,  # draws of the first counter for elements before the region, 0 to 15
    AMSGRAD: tl.constexpr,
    COUNTERS: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64) * COUNTERS + tl.arange(0, COUNTERS)  # int64 [C]
    draws = draw_numbers(key, block.to(tl.uint64) + first_counter)  # uint64 [C, 16]
    at = block[:, None] * 16 + tl.arange(0, 16)[None, :] - SKIP  # element of the region, [C, 16]
    inside = at < numel
    if SKIP > 0:
        inside &= at >= 0

    w = tl.load(param + at, mask=inside).to(tl.float32)
    g = tl.load(grad + at, mask=inside).to(tl.float32) * scale
    g = tl.where(draws.to(tl.int32) < threshold, g, 0.0)  # never a product: inf times 0 is NaN
    m = tl.load(exp_avg + at, mask=inside) * beta1 + g * rest1
    v = tl.load(exp_avg_sq + at, mask=inside) * beta2 + g * g * rest2
    tl.store(exp_avg + at, m, mask=inside)
    tl.store(exp_avg_sq + at, v, mask=inside)
    if AMSGRAD:
        v = tl.maximum(
            v, tl.load(max_exp_avg_sq + at, mask=inside), propagate_nan=tl.PropagateNan.ALL
        )  # as torch.maximum has it
        tl.store(max_exp_avg_sq + at, v, mask=inside)
    w -= w * decay
    w -= step_size * tl.div_rn(m, tl.div_rn(tl.sqrt_rn(v), correction2) + eps)
    tl.store(param + at, w.to(param.dtype.element_ty), mask=inside)


@functools.cache
def _new_enough(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.cuda is None:
        return True
    return torch.cuda.get_device_capability(device) >= _OLDEST_CUDA
