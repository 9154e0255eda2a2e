"""Trace a training step with fake tensors: the peak memory of each phase, extrapolated from a few layers.

Every phase's peak is linear in the number of layers: each layer adds its weights, gradients and saved activations,
and temporaries belong to one layer. So two traces of few layers give that of many.
"""

import copy
import gc
from dataclasses import dataclass

import torch
from torch import nn

from ftkit._compat import fake_ranks, fake_tensors, fill_from_meta
from ftkit._modules import decoder_layers

from . import step
from .plan import MemoryPlan
from .tracker import MemoryTracker

TRACED_LAYERS = 4  # two at either end have phases of their own, and FSDP prefetches one while another computes


@dataclass(frozen=True)
class Trace:
    """Bytes on rank 0, without optimizer state: by phase, and at each phase's peak by kind."""

    peaks: dict[str, int]
    at_peak: dict[str, dict[str, int]]
    traffic: dict[str, int]  # of each collective: bytes of its largest tensor, summed over a step


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
    """Trace a model on meta, after `step.apply_method`."""
    count = len(decoder_layers(model))
    if every_layer or count <= TRACED_LAYERS + 1 or not identical_layers(model):
        return trace_layers(model, plan, count)
    few, more = trace_layers(model, plan, TRACED_LAYERS), trace_layers(model, plan, TRACED_LAYERS + 1)

    def extrapolate(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
        return {k: a.get(k, 0) + (b.get(k, 0) - a.get(k, 0)) * (count - TRACED_LAYERS) for k in {**a, **b}}

    return Trace(
        extrapolate(few.peaks, {phase: more.peaks[phase] for phase in few.peaks}),
        {phase: extrapolate(few.at_peak[phase], more.at_peak[phase]) for phase in few.peaks},
        extrapolate(few.traffic, more.traffic),
    )


def identical_layers(model: nn.Module) -> bool:
    """Whether every layer equals the first in shapes, trainable parameters and type of attention."""

    def form(layer: nn.Module) -> list:
        return [(name, p.shape, p.dtype, p.requires_grad) for name, p in layer.named_parameters()]

    layers = decoder_layers(model)
    kinds = getattr(step.unwrap_peft(model).config.get_text_config(), "layer_types", None) or [""]
    return len(set(kinds)) == 1 and all(form(layer) == form(layers[0]) for layer in layers[1:])


def trace_layers(model: nn.Module, plan: MemoryPlan, layers: int) -> Trace:
    """Trace the first `layers` layers, without extrapolating."""
    small = copy_to_meta(model, layers)
    vocabulary = step.unwrap_peft(small).config.get_text_config().vocab_size
    gc.freeze()  # or the garbage collector would search existing objects, for a seventh of a trace's time
    try:
        if plan.world_size == 1 or plan.ddp:  # DDP's buffers are part of the states
            return _run(small, plan, None, vocabulary)
        with fake_ranks(plan.world_size):
            return _run(small, plan, plan.mesh.build_mesh("cpu"), vocabulary)
    finally:
        gc.unfreeze()


def _run(model: nn.Module, plan: MemoryPlan, mesh, vocabulary: int) -> Trace:
    tracker = MemoryTracker(vocabulary)
    model = step.apply_plan(model, plan, mesh)  # on meta, because fake tensors are slow to shard 1,024 times
    with fake_tensors():
        fill_from_meta(model)
        step.mark_layers(model, tracker)
        step.label_gradients(model, tracker)
        if plan.mesh.tp > 1:  # DTensor allocates tensors when it plans an operation for the first time
            step.forward_and_backward(model, plan, vocabulary)
            model.zero_grad()
        with tracker:
            tracker.label(model.parameters(), "weights")
            step.forward_and_backward(model, plan, vocabulary, tracker)
    peaks = {phase: size for phase, size in tracker.peaks.items() if phase != "start"}
    found = Trace(peaks, {phase: tracker.at_peak[phase] for phase in peaks}, dict(tracker.traffic))
    del model
    gc.collect()  # FSDP's hooks are cycles that hold the process group
    return found
