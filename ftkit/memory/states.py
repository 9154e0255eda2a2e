"""What a rank keeps between steps, from shapes alone: weights, gradients, optimizer state. Exact to the byte."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from ftkit.child_tuning.masks import clean_name
from ftkit.child_tuning.update import BLOCK
from ftkit.memory.plan import DTYPES, Plan
from ftkit.memory.step import cut_along
from ftkit.optim import decay_groups

INDEX_BYTES = 4  # int32, up to 2³¹ elements in a tensor


@dataclass(frozen=True)
class States:
    """Bytes on one rank. `transient` exists only while the optimizer steps, `buffers` always."""

    weights: int
    gradients: int
    optimizer: int
    buffers: int  # DDP's buckets
    scratch: int  # child-tuning's memory for blocks, on a CPU
    transient: int


class Stepped(NamedTuple):
    """A trained parameter on one rank."""

    held: int  # elements
    size: int  # bytes of an element
    child: int  # elements with moments


def block(length: int, parts: int, index: int) -> slice:
    """The part of a dimension that `torch.chunk` gives to `index`: equal blocks, and the last get what is left."""
    size = -(-length // parts)
    return slice(min(length, index * size), min(length, (index + 1) * size))


def region(shape: torch.Size, plan: Plan, rank: int, along: int | None = None) -> tuple[slice, ...]:
    """Where a rank's part of a parameter lies; tensor parallelism cuts `along`, then `fully_shard` by rows."""
    _, shard, tp = plan.mesh
    cuts = [slice(0, length) for length in shape]
    if along is not None:
        cuts[along] = block(shape[along], tp, rank % tp)
    if cuts and shard > 1:
        cut = block(cuts[0].stop - cuts[0].start, shard, rank // tp % shard)
        cuts[0] = slice(cuts[0].start + cut.start, cuts[0].start + cut.stop)
    return tuple(cuts)


def numel(cuts: tuple[slice, ...]) -> int:
    total = 1
    for cut in cuts:
        total *= cut.stop - cut.start
    return total


def parts(model: nn.Module, plan: Plan, rank: int) -> Iterator[tuple[str, nn.Parameter, tuple[slice, ...]]]:
    """Name, whole parameter and the rank's region of it; tied weights once."""
    along = cut_along(model) if plan.mesh[2] > 1 else {}
    for name, parameter in model.named_parameters():
        yield name, parameter, region(parameter.shape, plan, rank, along.get(id(parameter)))


def moment_dtype(plan: Plan, weights: torch.dtype) -> torch.dtype:
    """AdamW's moments are of the weights' dtype, child-tuning's of float32 where that is less."""
    if plan.moments:
        return DTYPES[plan.moments]
    return torch.float32 if plan.child_tuning or plan.master_copy else weights


def states(
    model: nn.Module, plan: Plan, rank: int = 0, gradient_mask: Mapping[str, torch.Tensor] | None = None
) -> States:
    """The states of a model whose training parts are chosen (`step.apply_method`), meta or real, before sharding.

    `gradient_mask` counts the children of compact states exactly; without it each tensor has `reserve_p` of a child.
    """
    total, stepped = Counter(), {}
    for name, parameter, cuts in parts(model, plan, rank):
        held, size = numel(cuts), parameter.element_size()
        total["weights"] += held * size
        if not parameter.requires_grad:
            continue
        total["gradients"] += held * size
        moment = moment_dtype(plan, parameter.dtype).itemsize
        child = held
        if plan.child_tuning and plan.child_state == "compact":
            mask = None if gradient_mask is None else gradient_mask[clean_name(name)]
            child = round(plan.reserve_p * held) if mask is None else int(mask[cuts].sum())
            total["optimizer"] += child * INDEX_BYTES
        elif plan.child_tuning and plan.child_state == "dense":
            total["optimizer"] += held  # a mask of one byte an element
        total["optimizer"] += 2 * child * moment + (4 * held if plan.master_copy else 0)
        stepped[name] = Stepped(held, size, child)
    groups = (
        decay_groups(model.named_parameters(), 0.01) if stepped else []
    )  # an optimizer steps one after the other
    groups = [[stepped[name] for name, _ in group["params"]] for group in groups]
    return States(
        total["weights"],
        total["gradients"],
        total["optimizer"],
        total["gradients"] if plan.ddp else 0,
        max((_scratch(plan, group) for group in groups), default=0),
        _transient(plan, groups),
    )


def _largest_batch(sizes: Iterable[int]) -> int:
    """Elements of the largest batch of blocks that child-tuning steps at once, of tensors of these sizes."""
    largest = batch = 0
    for size in sizes:
        for start in range(0, size, BLOCK):
            batch += min(BLOCK, size - start)
            largest = max(largest, batch)
            batch = 0 if batch >= BLOCK else batch
    return largest


def _scratch(plan: Plan, group: list[Stepped]) -> int:
    """Child-tuning works through blocks and keeps their memory, for each element of the largest batch.

    It is a gradient and a mask's bits, each of float32's size, a mask of one byte where it is drawn, and a weight
    where that is copied.
    """
    if not plan.child_tuning or plan.child_state == "compact" or plan.kernel != "loop":
        return 0
    copies = plan.child_state == "dense" or plan.weights != "float32"
    mask = 1 if plan.child_state == "task-free" else 0
    return _largest_batch(part.held for part in group) * (8 + 4 * copies + mask)


def _transient(plan: Plan, groups: list[list[Stepped]]) -> int:
    if plan.child_tuning:
        if plan.child_state != "compact" or plan.kernel != "loop":
            return 0
        # A batch of the child's blocks is gathered: weights and gradients, in float32.
        return 8 * max((_largest_batch(part.child for part in group) for group in groups), default=0)
    copies = (
        sum(4 * part.held for group in groups for part in group) if plan.master_copy else 0
    )  # of the gradients
    sizes = [[part.held * (4 if plan.master_copy else part.size) for part in group] for group in groups]
    return copies + max((adamw_temporaries(plan.kernel, group) for group in sizes), default=0)


def adamw_temporaries(kernel: str, sizes: list[int]) -> int:
    """Bytes that torch's AdamW allocates while it steps tensors of these sizes, in bytes.

    The loop makes a root and a quotient of each, and still has the quotient of the one before.
    """
    if kernel == "loop":
        return max(2 * size + before for before, size in pairwise([0, *sizes]))
    return sum(sizes) if kernel == "foreach" else 0
