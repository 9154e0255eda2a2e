"""Gradient clipping by the global norm, whatever the parameters are cut by.

torch's own `clip_grad_norm_` refuses a model in which some parameters lie on one mesh and some on another:
under tensor parallelism and FSDP together, norms are cut by FSDP alone and matrices by both.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[torch.nn.Parameter], max_norm: float) -> float:
    """Scale all gradients in place so that their global L2 norm is at most `max_norm`; return the norm before.

    Call it on every rank: the norm of a DTensor is summed over its mesh. Plain tensors are taken as equal on all
    ranks. A gradient that came as parts of a sum is summed first, and stays so.
    """
    groups = defaultdict(list)
    for parameter in parameters:
        if parameter.grad is not None:
            _sum_parts(parameter)
            groups[getattr(parameter.grad, "device_mesh", None)].append(parameter.grad)
    total = 0.0
    for gradients in groups.values():
        norm = torch.nn.utils.get_total_norm(gradients)
        total += (norm.full_tensor() if isinstance(norm, DTensor) else norm).item() ** 2
    total **= 0.5
    factor = max_norm / (total + 1e-6)  # torch's own safeguard
    if not factor >= 1:  # a norm of NaN makes every gradient NaN, as in torch, rather than passing unseen
        for gradients in groups.values():
            for gradient in gradients:
                (gradient.to_local() if isinstance(gradient, DTensor) else gradient).mul_(factor)
    return total


def _sum_parts(parameter: torch.nn.Parameter) -> None:
    placements = getattr(parameter.grad, "placements", ())
    if any(isinstance(placement, Partial) for placement in placements):
        whole = [Replicate() if isinstance(placement, Partial) else placement for placement in placements]
        parameter.grad = parameter.grad.redistribute(placements=whole)
