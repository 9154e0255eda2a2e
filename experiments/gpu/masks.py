"""Whether the optimizer's step on this device keeps exactly the gradient entries that `gradient_mask` keeps.

With beta1 = 0 and gradients of one, the first moment is the mask, rescaled. Weights differ in size, dtype and name; p
goes from nearly nothing to nearly all.
"""

from contextlib import nullcontext
from unittest import mock

import torch

from ftkit.child_tuning import ChildTuningAdamW, gradient_mask

from .records import Write

SHAPES = {  # by tiny: none, one and several programs of the kernel, full ones and others
    False: [(1,), (37,), (1024,), (33, 65), (4096, 4096), (7, 128_256)],
    True: [(1,), (37,), (33, 65)],
}
PROBABILITIES = (1e-3, 0.1, 0.3, 0.5, 0.99)
STEPS, SEED = 2, 3


def measure(device: torch.device, tiny: bool, write: Write) -> None:
    for p in PROBABILITIES:
        for dtype in (torch.float32, torch.bfloat16):
            found = differences(device, SHAPES[tiny], p, dtype)
            write({"p": p, "dtype": str(dtype).removeprefix("torch."), **found})


def differences(device: torch.device, shapes: list[tuple], p: float, dtype: torch.dtype) -> dict[str, int | bool]:
    """How many elements there are in all steps, how many are kept here and not there or the other way round, by the
    optimizer's seed and by another one, and in how many parameters the kernel took the step."""
    params = {f"layers.{i}.weight": torch.nn.Parameter(torch.zeros(s, dtype=dtype)) for i, s in enumerate(shapes)}
    params = {name: torch.nn.Parameter(param.detach().to(device)) for name, param in params.items()}
    optimizer = ChildTuningAdamW(params.items(), lr=1e-3, betas=(0.0, 0.999), reserve_p=p, seed=SEED)
    found = {"elements": 0, "differing": 0, "differing_from_another_seed": 0}
    with _counted_kernel(device) as kernel:
        for step in range(1, STEPS + 1):
            for param in params.values():
                param.grad = torch.ones_like(param)
            optimizer.step()
            for name, param in params.items():
                kept = (optimizer.state[param]["exp_avg"] != 0).cpu()
                by_seed = [gradient_mask(param.shape, p, seed=s, step=step, name=name) for s in (SEED, SEED + 1)]
                found["elements"] += kept.numel()
                found["differing"] += int((kept != by_seed[0]).sum())
                found["differing_from_another_seed"] += int((kept != by_seed[1]).sum())
        found["steps"] = STEPS * len(params)
        found["by_kernel"] = kernel.call_count if kernel else 0
    return found


def _counted_kernel(device: torch.device):
    """A context that counts the kernel's calls on CUDA; None elsewhere."""
    if device.type != "cuda":
        return nullcontext()
    from ftkit.child_tuning import triton_kernel

    return mock.patch.object(triton_kernel, "fused_step", wraps=triton_kernel.fused_step)
