"""Trace a training step with fake tensors: the peak memory of each phase, extrapolated from a few layers.

At any one place in a step, such as the second operation of the last layer, every kind of bytes is linear in the number
of layers: each layer adds its weights, gradients and saved activations, and temporaries belong to one layer. So two
traces of few layers give that of many, kind by kind, and a peak is the sum of its kinds. The place of a phase's peak
may move as layers are added: the forward pass begins with the embedding unsharded and ends with all activations saved.
So the parts of a phase are extrapolated, one for each layer, and the highest is the phase's peak. Where kinds of layers
alternate, as sliding-window and full attention do in Gemma, whole periods are left out.
"""

import copy
import gc
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)

from ftkit._compat import fake_ranks, fake_tensors, fill_from_meta
from ftkit._modules import decoder_layers

from . import step
from .plan import MemoryPlan
from .tracker import MemoryTracker, Parts, highest_parts

LONGEST_PERIOD = 8  # layers until their kinds repeat


@dataclass(frozen=True)
class Trace:
    """Bytes on rank 0, without optimizer state: by phase, and at each phase's peak by kind."""

    parts: Parts  # of the phases
    traffic: dict[str, int]  # of each collective: bytes of its largest tensor, summed over a step

    @property
    def at_peak(self) -> dict[str, dict[str, int]]:
        return highest_parts(self.parts)

    @property
    def peaks(self) -> dict[str, int]:
        return {phase: sum(split.values()) for phase, split in self.at_peak.items()}


def copy_to_meta(model: nn.Module, dropped: range = range(0)) -> nn.Module:
    """A copy on the meta device, without the decoder layers in `dropped`; tied weights stay tied."""
    memo = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    layers = decoder_layers(model)
    for index in dropped:
        memo[id(layers[index])] = nn.Identity()
    small = copy.deepcopy(model, memo)
    if dropped:
        (found,) = [m for m in small.modules() if isinstance(m, nn.ModuleList) and len(m) == len(layers)]
        del found[dropped.start : dropped.stop]
        config = step.unwrap_peft(small).config.get_text_config()
        config.num_hidden_layers = len(found)  # llama's forward pass slices by it
        if kinds := getattr(config, "layer_types", None):
            config.layer_types = [kind for index, kind in enumerate(kinds) if index not in dropped]
    return small


def trace(model: nn.Module, plan: MemoryPlan, every_layer: bool = False) -> Trace:
    """Trace a model on meta, after `step.apply_method`. Raises ValueError for one that needs real tensors."""
    dropped, period = (range(0), 1) if every_layer else spare_layers(model)
    ranks = plan.world_size if plan.sharded else 1  # DDP's buffers are part of the states
    with fake_ranks(ranks) if ranks > 1 else nullcontext():
        mesh = plan.mesh.build_mesh("cpu") if ranks > 1 else None
        if plan.mesh.tp > 1:  # DTensor allocates tensors when it plans an operation for the first time: do so before
            trace_layers(model, plan, mesh, dropped)
        if not dropped:
            return trace_layers(model, plan, mesh)
        front, back = dropped.start, len(decoder_layers(model)) - dropped.stop
        few = trace_layers(model, plan, mesh, dropped, front, back)
        more = trace_layers(model, plan, mesh, dropped[period:], front, back)

    def extrapolate(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
        return {k: a.get(k, 0) + (b.get(k, 0) - a.get(k, 0)) * (len(dropped) // period) for k in {**a, **b}}

    parts = {part: extrapolate(split, more.parts[part]) for part, split in few.parts.items()}
    return Trace(parts, extrapolate(few.traffic, more.traffic))


def spare_layers(model: nn.Module) -> tuple[range, int]:
    """The layers in the middle that a trace can do without, and the period in which their kinds repeat.

    The kind of a layer: its shapes, trainable parameters, type of attention and whether it recomputes activations. Two
    layers stay at either end, and one of every kind. Empty where two short traces would take longer than a whole one.
    """
    layers = decoder_layers(model)
    types = getattr(step.unwrap_peft(model).config.get_text_config(), "layer_types", None) or [""] * len(layers)
    if len(types) != len(layers):
        return range(0), 1
    kinds = [
        (kind, getattr(layer, "gradient_checkpointing", False))
        + tuple((name, p.shape, p.dtype, p.requires_grad) for name, p in layer.named_parameters())
        for kind, layer in zip(types, layers, strict=True)
    ]
    found = []
    for period in range(1, LONGEST_PERIOD + 1):
        start = stop = 0  # of the present stretch of layers that equal the one a period later
        for index in range(len(layers) - period):
            start = start if kinds[index] == kinds[index + period] else index + 1
            stop = index + 1 + period
            first = max(start, 2)
            last = min(stop - max(0, period - (first - start)), len(layers) - 2)
            spare = range(first, first + (last - first) // period * period)
            if 2 * (len(layers) - len(spare)) + period < len(layers):
                found.append((spare, period))
    return max(found, key=lambda spare: len(spare[0]) - spare[1] / 2, default=(range(0), 1))


def trace_layers(
    model: nn.Module,
    plan: MemoryPlan,
    mesh,
    dropped: range = range(0),
    front: int = 2,
    back: int = 2,
) -> Trace:
    """Trace without the `dropped` layers. The first and last ones, `front` and `back`, have phases of their own."""
    small = copy_to_meta(model, dropped)
    vocabulary = step.unwrap_peft(small).config.get_text_config().vocab_size
    tracker = MemoryTracker(vocabulary)
    gc.freeze()  # or the garbage collector would search existing objects, for a seventh of a trace's time
    try:
        small = step.apply_plan(small, plan, mesh)  # on meta, because fake tensors are slow to shard 1,024 times
        with fake_tensors():
            fill_from_meta(small)
            step.mark_layers(small, tracker, front, back)
            step.label_gradients(small, tracker)
            with tracker:
                tracker.label(small.parameters(), "weights")
                step.forward_and_backward(small, plan, vocabulary, tracker)
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
        raise ValueError(
            f"the memory of {type(step.unwrap_peft(model)).__name__} cannot be estimated: its forward pass depends on "
            f"values ({error})"
        ) from None
    finally:
        del small
        gc.collect()  # FSDP's hooks are cycles that hold the process group
        gc.unfreeze()
    return Trace({part: split for part, split in tracker.parts.items() if part[0] != "start"}, dict(tracker.traffic))
