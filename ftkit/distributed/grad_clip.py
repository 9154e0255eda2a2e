"""Gradient clipping by the global norm, whatever the parameters are cut by.

torch's own `clip_grad_norm_` refuses a model in which some parameters lie on one mesh and some on another:
under tensor parallelism and FSDP together, norms are cut by FSDP alone and matrices by both.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate


@torch.no_grad()
def clip_grad_norm_(parameters: Iterable[torch.nn.Parameter], max_norm: float) -> float:
    """Scale all gradients in place so that their global L2 norm is at most `max_norm`; return the norm before.

    Call it on every rank: squares of a DTensor are summed over the mesh dimensions that cut it. Plain tensors are
    taken as equal on all ranks. A gradient that came as parts of a sum is summed first, and stays so.
    """
    groups = defaultdict(list)  # of local gradients that are cut in the same way
    for parameter in parameters:
        if parameter.grad is not None:
            _sum_parts(parameter)
            gradient = parameter.grad
            cut = (gradient.device_mesh, gradient.placements) if isinstance(gradient, DTensor) else None
            groups[cut].append(gradient.to_local() if cut else gradient)
    total = sum(_squares(gradients, cut) for cut, gradients in groups.items()) ** 0.5
    factor = max_norm / (total + 1e-6)  # torch's own safeguard
    if not factor >= 1:  # a norm of NaN makes every gradient NaN, as in torch, rather than passing unseen
        for gradients in groups.values():
            for gradient in gradients:
                gradient.mul_(factor)
    return total


def _squares(gradients: list[torch.Tensor], cut: tuple | None) -> float:
    """The sum of squares of whole gradients; float64 between ranks, so that all of them find the same factor."""
    square = torch.nn.utils.get_total_norm(gradients).item() ** 2
    if cut is None:
        return square
    mesh, placements = cut
    total = torch.tensor(square, dtype=torch.float64, device=gradients[0].device)
    for dimension, placement in enumerate(placements):
        if not placement.is_replicate():
            dist.all_reduce(total, group=mesh.get_group(dimension))
    return total.item()


def _sum_parts(parameter: torch.nn.Parameter) -> None:
    placements = getattr(parameter.grad, "placements", ())
    if any(placement.is_partial() for placement in placements):
        whole = [Replicate() if placement.is_partial() else placement for placement in placements]
        parameter.grad = parameter.grad.redistribute(placements=whole)
