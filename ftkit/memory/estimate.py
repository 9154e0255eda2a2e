"""Bytes that a rank sends in a step, by ring algorithms: of S bytes on n ranks S (n - 1) / n, twice that to all-reduce.

Shapes: B rows, T tokens, D hidden, V vocabulary.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from ftkit._modules import clean_name, decoder_layers
from ftkit.child_tuning.update import BLOCK_ELEMENTS
from ftkit.distributed import tensor_parallel
from ftkit.parameters import decay_groups

from .plan import DTYPES, MemoryPlan
from .step import apply_method, tp_shard_dims, unwrap_peft
from .trace import Trace, copy_to_meta, trace
from .tracker import KINDS


def communication(model: nn.Module, plan: MemoryPlan) -> dict[str, int]:
    """Bytes sent a step by operation, of a model whose training parts are chosen, whole."""
    replicate, shard, tp = plan.mesh.sizes
    sent = Counter()
    layers = [parameter for layer in decoder_layers(model) for parameter in layer.parameters()]
    in_layers = {id(parameter) for parameter in layers}
    split = tp_shard_dims(model) if tp > 1 else {}
    for parameter in model.parameters():
        size = parameter.numel() // (tp if id(parameter) in split else 1)
        trains = parameter.requires_grad
        if plan.sharded:
            again = id(parameter) in in_layers and plan.reshard_after_forward  # the root stays gathered
            gathers = plan.accumulation * (2 if again else 1)
            sent["all-gather of weights"] += gathers * size * DTYPES[plan.compute].itemsize * (shard - 1) // shard
        if trains and plan.sharded:
            sent["reduce-scatter of gradients"] += 4 * size * (shard - 1) // shard
            sent["all-reduce of gradients"] += 2 * 4 * size // shard * (replicate - 1) // replicate
        elif trains and plan.ddp:
            reduced = size * parameter.element_size() * plan.accumulation
            sent["all-reduce of gradients"] += 2 * reduced * (replicate - 1) // replicate
    if tp > 1:
        config = unwrap_peft(model).config.get_text_config()
        tokens = plan.micro_batch_size * plan.max_length * plan.accumulation
        hidden = tokens * config.hidden_size * DTYPES[plan.compute].itemsize
        # Forward, the output of each linear that is cut by rows; backward, the input's gradient of each cut by columns.
        # Computing a layer again stops before its last output, which nothing needs.
        found = tensor_parallel.tp_plan_of(unwrap_peft(model))
        styles = [style for name, style in found.items() if "*." in name and style in ("colwise", "rowwise")]
        passes = len(styles) + (styles.count("rowwise") - 1 if plan.activation_checkpointing else 0)
        ends = 2  # the embedding's output, and the gradient of what the head is given
        reduced = (passes * len(decoder_layers(model)) + ends) * hidden
        sent["all-reduce of activations"] = 2 * reduced * (tp - 1) // tp
        logits = tokens * config.vocab_size * DTYPES[plan.compute].itemsize
        sent["all-gather of logits"] = logits * (tp - 1) // tp
    return {operation: size for operation, size in sent.items() if size}


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


def region(shape: torch.Size, plan: MemoryPlan, rank: int, along: int | None = None) -> tuple[slice, ...]:
    """Where a rank's part of a parameter lies; tensor parallelism cuts `along`, then `fully_shard` by rows."""
    shard, tp = plan.mesh.dp_shard, plan.mesh.tp
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


def parts(model: nn.Module, plan: MemoryPlan, rank: int) -> Iterator[tuple[str, nn.Parameter, tuple[slice, ...]]]:
    """Name, whole parameter and the rank's region of it; tied weights once."""
    along = tp_shard_dims(model) if plan.mesh.tp > 1 else {}
    for name, parameter in model.named_parameters():
        yield name, parameter, region(parameter.shape, plan, rank, along.get(id(parameter)))


def moment_dtype(plan: MemoryPlan, weights: torch.dtype) -> torch.dtype:
    """AdamW's moments are of the weights' dtype, child-tuning's of float32 where that is less."""
    if plan.moments:
        return DTYPES[plan.moments]
    return torch.float32 if plan.child_tuning or plan.master_copy else weights


def persistent_bytes(
    model: nn.Module, plan: MemoryPlan, rank: int = 0, gradient_mask: Mapping[str, torch.Tensor] | None = None
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
    groups = decay_groups(model.named_parameters(), 0.01) if stepped else []  # an optimizer steps one after the other
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
        for start in range(0, size, BLOCK_ELEMENTS):
            batch += min(BLOCK_ELEMENTS, size - start)
            largest = max(largest, batch)
            batch = 0 if batch >= BLOCK_ELEMENTS else batch
    return largest


def _scratch(plan: MemoryPlan, group: list[Stepped]) -> int:
    """Child-tuning works through blocks and keeps their memory, for each element of the largest batch.

    It is a gradient and a mask's bits, each of float32's size, a mask of one byte where it is drawn, and a weight
    where that is copied.
    """
    if not plan.child_tuning or plan.child_state == "compact" or plan.kernel != "loop":
        return 0
    copies = plan.child_state == "dense" or plan.weights != "float32"
    mask = 1 if plan.child_state == "task-free" else 0
    return _largest_batch(part.held for part in group) * (8 + 4 * copies + mask)


def _transient(plan: MemoryPlan, groups: list[list[Stepped]]) -> int:
    if plan.child_tuning:
        if plan.child_state != "compact" or plan.kernel != "loop":
            return 0
        # A batch of the child's blocks is gathered: weights and gradients, in float32.
        return 8 * max((_largest_batch(part.child for part in group) for group in groups), default=0)
    copies = sum(4 * part.held for group in groups for part in group) if plan.master_copy else 0  # of the gradients
    sizes = [[part.held * (4 if plan.master_copy else part.size) for part in group] for group in groups]
    return copies + max((adamw_temporaries(plan.kernel, group) for group in sizes), default=0)


def adamw_temporaries(kernel: str, sizes: list[int]) -> int:
    """Bytes that torch's AdamW allocates while it steps tensors of these sizes, in bytes.

    The loop makes a root and a quotient of each, and still has the quotient of the one before.
    """
    if kernel == "loop":
        return max(2 * size + before for before, size in pairwise([0, *sizes]))
    return sum(sizes) if kernel == "foreach" else 0


OPTIMIZER_STEP = "optimizer step"


@dataclass(frozen=True)
class Estimate:
    """Bytes on rank 0, which holds no less than any other; `at_peak` splits the peak by kind."""

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
        """Whether the peak leaves `reserve` of `capacity` bytes to the context, libraries and fragmentation."""
        return self.peak <= capacity * (1 - reserve)


def estimate_memory(
    model: nn.Module,
    plan: MemoryPlan,
    gradient_mask: Mapping[str, torch.Tensor] | None = None,
    *,
    traced: Trace | None = None,
    every_layer: bool = False,
) -> Estimate:
    """Estimate a steady step (not the first, which has no moments yet) of a causal language model under a plan.

    `model` may lie on meta, and is not changed. `gradient_mask` is that of task-dependent child-tuning, where it is
    there already; `traced` the trace of a plan that differs in its optimizer alone. `every_layer` traces the whole
    depth, as a slower proof of the short cut that `ftkit.memory.trace` takes. Raises ValueError for a plan that the
    model cannot follow, RuntimeError in a process that is in a process group while the plan has several ranks.
    """
    validate(model, plan)
    model = apply_method(copy_to_meta(model), plan)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"freeze {plan.freeze!r} leaves nothing to train: give a narrower pattern")
    return combine(
        model, plan, persistent_bytes(model, plan, 0, gradient_mask), traced or trace(model, plan, every_layer)
    )


def combine(model: nn.Module, plan: MemoryPlan, held: States, traced: Trace) -> Estimate:
    """What is held and what was traced, as one estimate, of a model with what trains chosen."""
    constant = {"optimizer": held.optimizer, "communication": held.buffers, "scratch": held.scratch}

    def with_states(split: dict[str, int]) -> dict[str, int]:
        return {k: v for k in {**split, **constant} if (v := split.get(k, 0) + constant.get(k, 0))}

    splits = {phase: with_states(split) for phase, split in traced.at_peak.items()}
    step = {"weights": held.weights, "gradients": held.gradients, "scratch": held.transient}
    splits[OPTIMIZER_STEP] = with_states(step)
    phases = {phase: sum(split.values()) for phase, split in splits.items()}
    return Estimate(plan, held, phases, splits, communication(model, plan), traced)


def validate(model: nn.Module, plan: MemoryPlan) -> None:
    """Raise ValueError, with the remedy, where plan and model do not go together."""
    config = unwrap_peft(model).config.get_text_config()
    positions = getattr(config, "n_positions", None)  # a table of them: rotary models compute any
    if positions and plan.max_length > positions:
        raise ValueError(f"max_length is {plan.max_length}, and the model has {positions} positions")
    tp = plan.mesh.tp
    if tp == 1:
        return
    if plan.method == "lora":
        raise ValueError("LoRA and tensor parallelism do not go together here: give a mesh whose tp is 1")
    tensor_parallel.tp_plan_of(unwrap_peft(model))
    tensor_parallel.validate_tp_degree(unwrap_peft(model).config, tp)
    if not decoder_layers(model):
        raise ValueError("the model has no layers to split")


GIB, MIB = 2**30, 2**20


def size(count: int) -> str:
    """Bytes for a reader: MiB below one GiB."""
    return f"{count / GIB:,.2f} GiB" if count >= GIB else f"{count / MIB:,.2f} MiB"


def table(estimate: Estimate) -> str:
    """Held between passes, the peak and its parts, and what a rank sends in a step."""
    plan = estimate.plan
    ranks = "×".join(map(str, plan.mesh.sizes))
    lines = [f"bytes on one of {plan.world_size} rank(s), mesh {ranks} (dp_replicate × dp_shard × tp)"]
    held = {"weights": estimate.weights, "gradients": estimate.gradients, "optimizer": estimate.optimizer}
    lines += [f"  {kind:14} {size(count):>14}" for kind, count in held.items()]
    lines.append(f"peak, in phase: {estimate.phase}: {size(estimate.peak)}")
    split = estimate.at_peak
    lines += [f"  {kind:14} {size(split[kind]):>14}" for kind in (*KINDS, "scratch") if split.get(kind)]
    if estimate.communication:
        lines.append("sent by a rank in a step:")
        lines += [f"  {what:27} {size(count):>14}" for what, count in estimate.communication.items()]
    return "\n".join(lines)


def compare(estimate: Estimate, measured_peak: int) -> str:
    """One line for a run's log: what was told in advance beside the peak that was measured, in bytes."""
    off = estimate.peak / measured_peak - 1
    return (
        f"peak memory of a rank: {size(estimate.peak)} told in advance ({estimate.phase}), "
        f"{size(measured_peak)} measured ({off:+.1%})"
    )
