"""One kernel for the whole task-free step on CUDA: draw, mask, amplify, update the moments, decay, step.

Each element is read once and written once. Its lane is drawn in registers, so there is no mask in memory and
no temporary. Key, counters and lanes are those of `ftkit.child_tuning.masks`: `tl.philox` with 64-bit counters
is the generator that numpy has, and counter 1 + i // 16 holds the lanes of elements 16 * (i // 16) and the
fifteen that follow. So a step here and a step on a CPU keep the same elements.

Arithmetic is float32, in the order of torch's fused AdamW, with correctly rounded division and square root.
What `fits` refuses takes the path of `ftkit.child_tuning.update`; so does everything with `fused=False`.

Without a GPU, Triton's interpreter (`TRITON_INTERPRET=1`, set before the import) runs the kernel on CPU
tensors. That is how it is tested, beside being compiled for two CUDA architectures; how long a step takes on
a GPU is for `python -m experiments.optimizer_speed` to measure there.

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


def fits(share: LocalParam, arithmetic: dict) -> bool:
    """True where the kernel can do this share's step.

    It wants float32 moments, weights of at most 32 bits, tensors contiguous in memory, a region whose
    elements follow each other in the whole parameter (all of it, or a block of rows), and a learning rate
    that is a number: one in a tensor would have to be waited for.
    """
    moments = [moment for moment in share.moments if moment is not None]
    return (
        share.child is None
        and share.child_index is None
        and not arithmetic["foreach"]
        and arithmetic["fused"] is not False
        and not isinstance(arithmetic["lr"], torch.Tensor)
        and share.param.dtype in _WEIGHTS
        and share.region.run >= share.region.numel
        and all(moment.dtype == torch.float32 for moment in moments)
        and all(tensor.is_contiguous() for tensor in (share.param, *moments))
        and _new_enough(share.param.device)
    )


def fused_step(share: LocalParam, arithmetic: dict, threshold: int, scale: float) -> None:
    """One step of a share that `fits`, in place.

    Args:
        arithmetic: as `torch.optim.adamw.adamw` takes it: lr, beta1, beta2, eps, weight_decay, amsgrad,
            maximize.
        threshold: elements are kept whose lane is below it, in [0, 65536].
        scale: what kept gradient entries are multiplied by.
    """
    numel = share.param.numel()
    if not numel:
        return
    first, skip = divmod(share.region.offset, DRAWS_PER_COUNTER)
    lr, beta1, beta2 = arithmetic["lr"], arithmetic["beta1"], arithmetic["beta2"]
    exp_avg, exp_avg_sq, maximum = share.moments
    programs = -(-(skip + numel) // (DRAWS_PER_COUNTER * COUNTERS))
    with torch.cuda.device_of(share.param):  # a launch goes to the current device
        child_tuning_step[(programs,)](
            share.param,
            share.grad.contiguous(),
            exp_avg,
            exp_avg_sq,
            exp_avg_sq if maximum is None else maximum,
            numel,
            share.key,
            1 + first,  # numpy raises its counter before the first block
            threshold,
            -scale if arithmetic["maximize"] else scale,
            float(beta1),
            float(1 - beta1),
            float(beta2),
            float(1 - beta2),
            float(lr / (1 - beta1**share.step)),
            math.sqrt(1 - beta2**share.step),
            float(arithmetic["eps"]),
            float(lr * arithmetic["weight_decay"]),
            SKIP=skip,
            AMSGRAD=arithmetic["amsgrad"],
            COUNTERS=COUNTERS,
            enable_fp_fusion=False,  # Triton's default for it changes between versions
        )


@triton.jit
def draw_numbers(key, counters):
    """The sixteen 16-bit lanes of each counter: uint64 [C, 16] from uint64 [C]."""
    nought = counters * 0
    a, b, c, d = tl.philox(key, counters, nought, nought, nought)  # each uint64 [C]
    lane = tl.arange(0, 16)[None, :]
    low = tl.where(lane < 4, a[:, None], b[:, None])
    high = tl.where(lane < 12, c[:, None], d[:, None])
    words = tl.where(lane < 8, low, high)
    return (words >> ((lane % 4) * 16).to(tl.uint64)) & 0xFFFF


# Triton compiles a kernel anew for integers that it treats as special: 1, and multiples of 16. Of the key and the
# counter that would be a waste; but where `numel` is such a multiple and SKIP is 0, it loads several elements at once.
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
    SKIP: tl.constexpr,  # lanes of the first counter that belong to elements before the region, 0 to 15
    AMSGRAD: tl.constexpr,
    COUNTERS: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64) * COUNTERS + tl.arange(0, COUNTERS)  # int64 [C]
    lanes = draw_numbers(key, block.to(tl.uint64) + first_counter)  # uint64 [C, 16]
    at = block[:, None] * 16 + tl.arange(0, 16)[None, :] - SKIP  # element of the region, [C, 16]
    inside = at < numel
    if SKIP > 0:
        inside &= at >= 0

    w = tl.load(param + at, mask=inside).to(tl.float32)
    g = tl.load(grad + at, mask=inside).to(tl.float32) * scale
    g = tl.where(lanes.to(tl.int32) < threshold, g, 0.0)  # never a product: inf times 0 is NaN
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
