"""What a rank keeps between steps, from shapes alone: weights, gradients, optimizer state. Exact to the byte."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ftkit.child_tuning.masks import clean_name
from ftkit.child_tuning.update import BLOCK
from ftkit.memory.live import LiveBytes
from ftkit.memory.plan import DTYPES, Plan
from ftkit.memory.step import causal_lm, cut_along
from ftkit.torch_private import fake_tensors

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
    return torch.float32 if plan.method == "child-tuning" or plan.master_copy else weights


def states(
    model: nn.Module, plan: Plan, rank: int = 0, gradient_mask: Mapping[str, torch.Tensor] | None = None
) -> States:
    """The states of a model whose training parts are chosen (`step.apply_method`), meta or real, before sharding.

    `gradient_mask` counts the children of compact states exactly; without it each tensor has `reserve_p` of a child.
    """
    total, trained, whole = Counter(), [], _gradient_stays_whole(model, plan)
    for name, parameter, cuts in parts(model, plan, rank):
        held, size = numel(cuts), parameter.element_size()
        total["weights"] += held * size
        if not parameter.requires_grad:
            continue
        total["gradients"] += (parameter.numel() if parameter is whole else held) * size
        trained.append((held, size))
        moment = moment_dtype(plan, parameter.dtype).itemsize
        child = held
        if plan.method == "child-tuning" and plan.child_state == "compact":
            mask = None if gradient_mask is None else gradient_mask[clean_name(name)]
            child = round(plan.reserve_p * held) if mask is None else int(mask[cuts].sum())
            total["optimizer"] += child * INDEX_BYTES
        elif plan.method == "child-tuning" and plan.child_state == "dense":
            total["optimizer"] += held  # a mask of one byte an element
        total["optimizer"] += 2 * child * moment + (4 * held if plan.master_copy else 0)
    return States(
        total["weights"],
        total["gradients"],
        total["optimizer"],
        total["gradients"] if plan.ddp else 0,
        _scratch(plan, [held for held, _ in trained]),
        _transient(plan, trained),
    )


def _gradient_stays_whole(model: nn.Module, plan: Plan) -> nn.Parameter | None:
    """The embedding under tensor parallelism alone: DTensor leaves its gradient whole on every rank.

    Not where a tied head's gradient, which is cut, is added to it, nor where `fully_shard` cuts it.
    """
    if plan.mesh[2] == 1 or plan.sharded:
        return None
    base = causal_lm(model)
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    return None if head is not None and head.weight is embedding.weight else embedding.weight


def _scratch(plan: Plan, sizes: list[int]) -> int:
    """Child-tuning works through blocks and keeps their memory, for each element of the largest batch.

    It is a gradient and a mask's bits, each of float32's size, a mask of one byte where it is drawn, and a weight
    where that is copied.
    """
    if plan.method != "child-tuning" or plan.child_state == "compact" or plan.kernel != "loop":
        return 0
    largest = batch = 0
    for size in sizes:
        for start in range(0, size, BLOCK):
            batch += min(BLOCK, size - start)
            largest = max(largest, batch)
            batch = 0 if batch >= BLOCK else batch
    copies = plan.child_state == "dense" or plan.weights != "float32"
    mask = 1 if plan.child_state == "task-free" else 0
    return largest * (8 + 4 * copies + mask)


def _transient(plan: Plan, trained: list[tuple[int, int]]) -> int:
    if plan.method == "child-tuning":
        if plan.child_state != "compact" or plan.kernel != "loop":
            return 0
        # A batch of the child's blocks is gathered: weights and gradients, in float32.
        return 8 * min(2 * BLOCK, round(plan.reserve_p * sum(held for held, _ in trained)))
    copies = sum(4 * held for held, _ in trained) if plan.master_copy else 0  # of the gradients, in float32
    sizes = [held * (4 if plan.master_copy else size) for held, size in trained]
    whole = {"loop": max, "foreach": sum, "fused": lambda _: 0}[plan.kernel](sizes or [0])
    return copies + round(whole * adamw_temporaries(plan.kernel))


def adamw_temporaries(kernel: str) -> float:
    """Bytes that torch's AdamW allocates for each byte it steps at once: watched, in fake tensors, not assumed."""
    with fake_tensors(), LiveBytes() as live:
        weight = nn.Parameter(torch.empty(1 << 20))
        weight.grad = torch.empty_like(weight)
        optimizer = torch.optim.AdamW([weight], foreach=kernel == "foreach", fused=kernel == "fused")
        optimizer.step()
        before = live.now
        live.begin("again")
        optimizer.step()
        return (live.peaks["again"] - before) // (4 << 20)
