"""Gradient clipping by the global norm for parameters on different meshes.

torch's own `clip_grad_norm_` refuses those. Tensor parallelism and FSDP together lead to them: norms are sharded by
FSDP alone and matrices by both.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate


@torch.no_grad()
def clip_grad_norm_(parameters: Iterable[torch.nn.Parameter], max_norm: float) -> float:
    """Scale all gradients in place so that their global L2 norm is at most `max_norm`; return the norm before.

    A collective. Plain tensors are taken to be equal on all ranks. Partial DTensor gradients are reduced in place.
    """
    groups = defaultdict(list)  # sharding -> local gradients
    for parameter in parameters:
        if parameter.grad is not None:
            _reduce_partial(parameter)
            gradient = parameter.grad
            sharding = (gradient.device_mesh, gradient.placements) if isinstance(gradient, DTensor) else None
            groups[sharding].append(gradient.to_local() if sharding else gradient)
    total = sum(_squared_norm(gradients, sharding) for sharding, gradients in groups.items()) ** 0.5
    factor = max_norm / (total + 1e-6)  # torch's own safeguard
    if not factor >= 1:  # true for NaN, which makes every gradient NaN, as in torch
        for gradients in groups.values():
            for gradient in gradients:
                gradient.mul_(factor)
    return total


def _squared_norm(gradients: list[torch.Tensor], sharding: tuple | None) -> float:
    """The squared norm of the unsharded gradients; reduced in float64, so that all ranks get the same factor."""
    square = torch.nn.utils.get_total_norm(gradients).item() ** 2
    if sharding is None:
        return square
    mesh, placements = sharding
    total = torch.tensor(square, dtype=torch.float64, device=gradients[0].device)
    for dimension, placement in enumerate(placements):
        if not placement.is_replicate():
            dist.all_reduce(total, group=mesh.get_group(dimension))
    return total.item()


def _reduce_partial(parameter: torch.nn.Parameter) -> None:
    placements = getattr(parameter.grad, "placements", ())
    if any(placement.is_partial() for placement in placements):
        reduced = [Replicate() if placement.is_partial() else placement for placement in placements]
        parameter.grad = parameter.grad.redistribute(placements=reduced)
