"""Estimate the bytes of a training step on one rank: model states, the peak by phase and kind, and communication.

Shapes: B sequences, T tokens, D hidden, V vocabulary.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from ftkit._modules import clean_name, decoder_layers
from ftkit.child_tuning.update import parts
from ftkit.distributed import tensor_parallel
from ftkit.parameters import decay_groups

from .plan import DTYPES, EIGHT_BITS, MemoryPlan
from .step import apply_method, tp_shard_dims, unwrap_peft
from .trace import Trace, copy_to_meta, trace
from .tracker import KINDS

INDEX_BYTES = 4  # int32, up to 2³¹ elements in a tensor
MOMENT_BLOCK, SMALLEST_IN_8_BITS = 256, 4096  # elements; bitsandbytes' defaults, and torchao's
OPTIMIZER_STEP = "optimizer step"
GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class States:
    """Bytes of model states on one rank. `transient` exists only while the optimizer steps, `buffers` always."""

    weights: int
    gradients: int
    optimizer: int
    buffers: int  # DDP's buckets
    scratch: int  # child-tuning's reused buffers for blocks, on a CPU
    transient: int


@dataclass(frozen=True)
class Estimate:
    """Bytes on rank 0, which holds no less than any other; `at_peak` splits the peak by kind.

    The kinds are those alive at the one place in the step where the phase has its peak, so they add up to it; see
    `ftkit.memory.trace`.
    """

    plan: MemoryPlan
    states: States
    phases: dict[str, int]  # the peak of each phase
    splits: dict[str, dict[str, int]]  # the same, by kind
    communication: dict[str, int]  # what a rank sends in a step, by operation
    traced: Trace  # the step without its optimizer

    @property
    def weights(self) -> int:
        return self.states.weights

    @property
    def gradients(self) -> int:
        return self.states.gradients

    @property
    def optimizer(self) -> int:
        return self.states.optimizer

    @property
    def phase(self) -> str:
        """The phase of the peak."""
        return max(self.phases, key=self.phases.get)

    @property
    def peak(self) -> int:
        return self.phases[self.phase]

    @property
    def at_peak(self) -> dict[str, int]:
        return self.splits[self.phase]

    def fits(self, capacity: int, reserve: float = 0.1) -> bool:
        """Whether the peak leaves `reserve` of `capacity` bytes for the CUDA context, libraries and fragmentation."""
        return self.peak <= capacity * (1 - reserve)


def estimate_memory(
    model: nn.Module,
    plan: MemoryPlan,
    gradient_mask: Mapping[str, torch.Tensor] | None = None,
    *,
    traced: Trace | None = None,
    every_layer: bool = False,
) -> Estimate:
    """Estimate a steady training step (not the first, which has no moments yet) of a causal language model.

    Args:
        model: may be on meta; it is not changed.
        plan: how it is trained.
        gradient_mask: the mask of task-dependent child-tuning, if it exists already.
        traced: the trace of a plan that differs in its optimizer only, to save time.
        every_layer: trace all layers instead of extrapolating from a few, which is slower.

    Raises:
        ValueError: the model cannot be trained by this plan.
        RuntimeError: the plan has several ranks and this process is in a process group.
    """
    validate(model, plan)
    model = apply_method(copy_to_meta(model), plan)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"freeze {plan.freeze!r} leaves nothing to train: give a narrower pattern")
    states = persistent_bytes(model, plan, 0, gradient_mask)
    return combine(model, plan, states, traced or trace(model, plan, every_layer))


def combine(model: nn.Module, plan: MemoryPlan, states: States, traced: Trace) -> Estimate:
    """The estimate of a model after `apply_method`, from its states and its trace."""
    constant = {"optimizer": states.optimizer, "communication": states.buffers, "scratch": states.scratch}

    def with_states(split: dict[str, int]) -> dict[str, int]:
        return {k: v for k in {**split, **constant} if (v := split.get(k, 0) + constant.get(k, 0))}

    splits = {phase: with_states(split) for phase, split in traced.at_peak.items()}
    step = {"weights": states.weights, "gradients": states.gradients, "scratch": states.transient}
    splits[OPTIMIZER_STEP] = with_states(step)
    phases = {phase: sum(split.values()) for phase, split in splits.items()}
    return Estimate(plan, states, phases, splits, communication(model, plan), traced)


def validate(model: nn.Module, plan: MemoryPlan) -> None:
    """Raise ValueError, with the remedy, if the model cannot be trained by the plan."""
    model = unwrap_peft(model)
    positions = getattr(model.config.get_text_config(), "n_positions", None)  # None for rotary models
    if positions and plan.max_length > positions:
        raise ValueError(f"max_length is {plan.max_length}, and the model has {positions} positions")
    if plan.mesh.tp == 1:
        return
    if plan.method == "lora":
        raise ValueError("LoRA and tensor parallelism do not go together here: give a mesh whose tp is 1")
    tensor_parallel.tp_plan_of(model)
    tensor_parallel.validate_tp_degree(model.config, plan.mesh.tp)
    if not decoder_layers(model):
        raise ValueError("the model has no layers to split")


def persistent_bytes(
    model: nn.Module, plan: MemoryPlan, rank: int = 0, gradient_mask: Mapping[str, torch.Tensor] | None = None
) -> States:
    """The model states of one rank, of a model after `apply_method` and before sharding, on meta or real.

    With a `gradient_mask`, the compact states of child-tuning are counted exactly; without, as `reserve_p` of each
    tensor.
    """
    total, trained = Counter(), {}
    tp_dims = tp_shard_dims(model) if plan.mesh.tp > 1 else {}
    for name, parameter in model.named_parameters():  # tied weights once
        region = local_region(parameter.shape, plan, rank, tp_dims.get(id(parameter)))
        elements, itemsize = math.prod(part.stop - part.start for part in region), parameter.element_size()
        total["weights"] += elements * itemsize
        if not parameter.requires_grad:
            continue
        total["gradients"] += elements * itemsize
        with_moments = elements
        if plan.child_tuning and plan.child_state == "compact":
            mask = None if gradient_mask is None else gradient_mask[clean_name(name)]
            with_moments = round(plan.reserve_p * elements) if mask is None else int(mask[region].sum())
            total["optimizer"] += with_moments * INDEX_BYTES
        elif plan.child_tuning and plan.child_state == "dense":
            total["optimizer"] += elements  # a mask of one byte per element
        total["optimizer"] += 2 * _moment_bytes(plan, with_moments, itemsize)
        total["optimizer"] += 4 * elements if plan.master_copy else 0
        trained[name] = LocalSize(elements, itemsize, with_moments)
    groups = decay_groups(model.named_parameters(), 0.01) if trained else []  # an optimizer steps one after the other
    groups = [[trained[name] for name, _ in group["params"]] for group in groups]
    buffers = total["gradients"] if plan.ddp else 0
    scratch = max((_scratch(plan, group) for group in groups), default=0)
    return States(total["weights"], total["gradients"], total["optimizer"], buffers, scratch, _transient(plan, groups))


def communication(model: nn.Module, plan: MemoryPlan) -> dict[str, int]:
    """Bytes that a rank sends in a step, by operation, of a model after `apply_method` and before sharding.

    By ring algorithms: of S bytes on n ranks, S (n - 1) / n to all-gather or reduce-scatter, twice that to all-reduce.
    """
    replicate, shard, tp = plan.mesh.sizes
    compute_bytes = DTYPES[plan.compute_dtype].itemsize
    sent = Counter()
    in_layers = {id(parameter) for layer in decoder_layers(model) for parameter in layer.parameters()}
    tp_dims = tp_shard_dims(model) if tp > 1 else {}
    for parameter in model.parameters():
        elements = parameter.numel() // (tp if id(parameter) in tp_dims else 1)
        if plan.sharded:
            twice = id(parameter) in in_layers and plan.reshard_after_forward  # the root stays unsharded
            gathers = plan.accumulation * (2 if twice else 1)
            sent["all-gather of weights"] += gathers * elements * compute_bytes * (shard - 1) // shard
        if parameter.requires_grad and plan.sharded:
            sent["reduce-scatter of gradients"] += 4 * elements * (shard - 1) // shard
            sent["all-reduce of gradients"] += 2 * 4 * elements // shard * (replicate - 1) // replicate
        elif parameter.requires_grad and plan.ddp:
            reduced = elements * parameter.element_size() * plan.accumulation
            sent["all-reduce of gradients"] += 2 * reduced * (replicate - 1) // replicate
    if tp > 1:
        model = unwrap_peft(model)
        config = model.config.get_text_config()
        sequences = plan.micro_batch_size * plan.accumulation
        tokens = sequences * plan.max_length
        # A chunked loss has no logits of a sequence's last token, and gathers all others again when it recomputes.
        through_head, times = (sequences * (plan.max_length - 1), 2) if plan.loss_chunk else (tokens, 1)
        # Forward: the output of each row-parallel linear. Backward: the input's gradient of each column-parallel one.
        # Recomputation stops before a layer's last output, which nothing needs.
        tp_plan = tensor_parallel.tp_plan_of(model)
        styles = [style for name, style in tp_plan.items() if "*." in name and style in ("colwise", "rowwise")]
        passes = len(styles) + (styles.count("rowwise") - 1 if plan.activation_checkpointing else 0)
        rows = passes * len(decoder_layers(model)) * tokens
        rows += tokens + through_head  # the embedding's output, and the gradient of the head's input
        sent["all-reduce of activations"] = 2 * rows * config.hidden_size * compute_bytes * (tp - 1) // tp
        sent["all-gather of logits"] = times * through_head * config.vocab_size * compute_bytes * (tp - 1) // tp
    return {operation: count for operation, count in sent.items() if count}


def local_region(shape: torch.Size, plan: MemoryPlan, rank: int, tp_dim: int | None = None) -> tuple[slice, ...]:
    """The slices of a parameter that a rank holds: tensor parallelism splits `tp_dim`, then FSDP the first one."""
    shard, tp = plan.mesh.dp_shard, plan.mesh.tp
    region = [slice(0, length) for length in shape]
    if tp_dim is not None:
        region[tp_dim] = _chunk(region[tp_dim], tp, rank % tp)
    if region and shard > 1:
        region[0] = _chunk(region[0], shard, rank // tp % shard)
    return tuple(region)


def adamw_temporaries(kernel: str, sizes: list[int]) -> int:
    """Bytes that torch's AdamW allocates while it steps tensors of these sizes, in bytes.

    The loop makes a root and a quotient of each, while the quotient of the one before is still alive.
    """
    if kernel == "loop":
        return max(2 * size + before for before, size in pairwise([0, *sizes]))
    return sum(sizes) if kernel == "foreach" else 0


def size(count: int) -> str:
    """Format bytes: in MiB below one GiB."""
    return f"{count / GIB:,.2f} GiB" if count >= GIB else f"{count / MIB:,.2f} MiB"


def table(estimate: Estimate) -> str:
    """The estimate as text: model states, the peak by kind, and communication per step."""
    plan = estimate.plan
    ranks = "×".join(map(str, plan.mesh.sizes))
    lines = [f"bytes on one of {plan.world_size} rank(s), mesh {ranks} (dp_replicate × dp_shard × tp)"]
    lines += [f"  {kind:14} {size(getattr(estimate, kind)):>14}" for kind in ("weights", "gradients", "optimizer")]
    lines.append(f"peak, in phase: {estimate.phase}: {size(estimate.peak)}")
    if plan.mesh.tp > 1:
        lines.append("  without sequence parallelism: between the split matrices every rank holds whole activations")
    split = estimate.at_peak
    lines += [f"  {kind:14} {size(split[kind]):>14}" for kind in (*KINDS, "scratch") if split.get(kind)]
    if estimate.communication:
        lines.append("sent by a rank in a step:")
        lines += [f"  {what:27} {size(count):>14}" for what, count in estimate.communication.items()]
    return "\n".join(lines)


def compare(estimate: Estimate, measured_peak: int) -> str:
    """One line for a run's log: the estimated peak and the measured one, in bytes."""
    off = estimate.peak / measured_peak - 1
    return (
        f"peak memory of a rank: {size(estimate.peak)} estimated ({estimate.phase}), "
        f"{size(measured_peak)} measured ({off:+z.1%})"  # z: no -0.0%
    )


class LocalSize(NamedTuple):
    """The size of a trained parameter on one rank."""

    elements: int
    itemsize: int  # bytes of an element
    with_moments: int  # elements that have moments


def _chunk(whole: slice, chunks: int, index: int) -> slice:
    """The part that `torch.chunk` gives to `index`: equal parts, and the last ones get the rest."""
    length = whole.stop - whole.start
    size = -(-length // chunks)
    return slice(whole.start + min(length, index * size), whole.start + min(length, (index + 1) * size))


def _largest_batch(sizes: Iterable[int]) -> int:
    """Elements of the largest batch of blocks that child-tuning steps at once, of tensors of these sizes."""
    return max((sum(stop - start for _, start, stop in part) for part in parts(list(sizes))), default=0)


def _moment_bytes(plan: MemoryPlan, elements: int, itemsize: int) -> int:
    """Bytes of one moment of a tensor whose own elements have `itemsize` bytes."""
    if plan.moment_dtype == EIGHT_BITS:  # small tensors keep float32, others a scale in float32 for each block
        return elements + 4 * math.ceil(elements / MOMENT_BLOCK) if elements >= SMALLEST_IN_8_BITS else 4 * elements
    if plan.moment_dtype:
        return elements * DTYPES[plan.moment_dtype].itemsize
    # AdamW's moments have the weights' dtype, child-tuning's and those of a master copy float32.
    return elements * (4 if plan.child_tuning or plan.master_copy else itemsize)


def _scratch(plan: MemoryPlan, group: list[LocalSize]) -> int:
    """Bytes of the buffers that child-tuning reuses from block to block.

    For each element of the largest batch: a gradient and the mask's random bits, 4 bytes each; a mask of one byte
    if it is drawn; and a weight if that is copied.
    """
    if not plan.child_tuning or plan.child_state == "compact" or plan.kernel != "loop":
        return 0
    copies = plan.child_state == "dense" or plan.param_dtype != "float32"
    mask = 1 if plan.child_state == "task-free" else 0
    return _largest_batch(part.elements for part in group) * (8 + 4 * copies + mask)


def _transient(plan: MemoryPlan, groups: list[list[LocalSize]]) -> int:
    """Bytes that exist only during the optimizer's step."""
    if plan.child_tuning:
        if plan.child_state != "compact" or plan.kernel != "loop":
            return 0
        # Of a batch of blocks, the masked weights and gradients are copied to float32, and their indices to int64.
        return 16 * max((_largest_batch(part.with_moments for part in group) for group in groups), default=0)
    copies = sum(4 * part.elements for group in groups for part in group) if plan.master_copy else 0  # of gradients
    if plan.moment_dtype == EIGHT_BITS:
        return copies  # its kernels step in place
    sizes = [[part.elements * (4 if plan.master_copy else part.itemsize) for part in group] for group in groups]
    return copies + max((adamw_temporaries(plan.kernel, group) for group in sizes), default=0)
