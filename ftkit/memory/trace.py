"""A step in fake tensors: the peak of each phase, from a model of a few layers, for one of any number.

Every phase's peak is linear in the number of layers: each layer adds its weights, gradients and saved activations,
and what is transient belongs to one layer. So two short traces tell the long one.
"""

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ftkit._compat import fake_ranks, fake_tensors, fill_from_meta
from ftkit._modules import decoder_layers

from . import step
from .plan import MemoryPlan
from .tracker import MemoryTracker

TRACED_LAYERS = 4  # layers: two at either end have phases of their own, and FSDP gathers one while another computes


@dataclass(frozen=True)
class Trace:
    """Bytes on rank 0, without optimizer state: by phase, and at each phase's peak by kind."""

    peaks: dict[str, int]
    at_peak: dict[str, dict[str, int]]
    traffic: dict[str, int]  # bytes of the largest tensor of each collective, added up over a step


def copy_to_meta(model: nn.Module, layers: int | None = None) -> nn.Module:
    """A copy on the meta device, of the first `layers` decoder layers only; tied weights stay tied."""
    memo = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    kept = decoder_layers(model)
    for dropped in kept[layers:] if layers else []:
        memo[id(dropped)] = nn.Identity()
    small = copy.deepcopy(model, memo)
    if layers:
        (found,) = [m for m in small.modules() if isinstance(m, nn.ModuleList) and len(m) == len(kept)]
        del found[layers:]
        config = step.unwrap_peft(small).config.get_text_config()
        config.num_hidden_layers = layers  # llama's forward pass slices by it
    return small


def trace(model: nn.Module, plan: MemoryPlan, every_layer: bool = False) -> Trace:
    """The trace of a model on meta, with what trains chosen already (`step.apply_method`)."""
    count = len(decoder_layers(model))
    if every_layer or count <= TRACED_LAYERS + 1 or not identical_layers(model):
        return extrapolate(model, plan, count)
    few, more = extrapolate(model, plan, TRACED_LAYERS), extrapolate(model, plan, TRACED_LAYERS + 1)

    def grown(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
        return {k: a.get(k, 0) + (b.get(k, 0) - a.get(k, 0)) * (count - TRACED_LAYERS) for k in {**a, **b}}

    few_peaks = {phase: few.peaks.get(phase, 0) for phase in few.peaks}
    return Trace(
        grown(few_peaks, {phase: more.peaks[phase] for phase in few_peaks}),
        {phase: grown(few.at_peak[phase], more.at_peak[phase]) for phase in few_peaks},
        grown(few.traffic, more.traffic),
    )


def identical_layers(model: nn.Module) -> bool:
    """Whether every layer is like the first: in shapes, in what trains, and in its kind of attention."""

    def form(layer: nn.Module) -> list:
        return [(name, p.shape, p.dtype, p.requires_grad) for name, p in layer.named_parameters()]

    layers = decoder_layers(model)
    kinds = getattr(step.unwrap_peft(model).config.get_text_config(), "layer_types", None) or [""]
    return len(set(kinds)) == 1 and all(form(layer) == form(layers[0]) for layer in layers[1:])


def extrapolate(model: nn.Module, plan: MemoryPlan, layers: int) -> Trace:
    """Trace the first `layers` layers as they are."""
    small = copy_to_meta(model, layers)
    vocabulary = step.unwrap_peft(small).config.get_text_config().vocab_size
    if plan.world_size == 1 or plan.ddp:  # DDP's own buffers are added where states are
        return _run(small, plan, None, vocabulary)
    with fake_ranks(plan.world_size):
        mesh = plan.mesh.build_mesh("cpu")
        return _run(small, plan, mesh, vocabulary)


@contextmanager
def _gc_frozen() -> Iterator[None]:
    """The garbage collector searches only what is made inside, which saves a seventh of a trace's time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@_gc_frozen()
def _run(model: nn.Module, plan: MemoryPlan, mesh, vocabulary: int) -> Trace:
    live = MemoryTracker(vocabulary)
    model = step.apply_plan(model, plan, mesh)  # on meta: cutting into 1,024 shards is slow in fake tensors
    with fake_tensors():
        fill_from_meta(model)
        step.mark_layers(model, live)
        step.label_gradients(model, live)
        if plan.mesh.tp > 1:  # DTensor plans each operation when it first meets it, with tensors of its own
            step.forward_and_backward(model, plan, vocabulary)
            model.zero_grad()
        with live:
            live.label(model.parameters(), "weights")
            step.forward_and_backward(model, plan, vocabulary, live)
    peaks = {phase: size for phase, size in live.peaks.items() if phase != "start"}
    found = Trace(peaks, {phase: live.at_peak[phase] for phase in peaks}, dict(live.traffic))
    del model
    gc.collect()  # FSDP's hooks are cycles that hold the process group
    return found
