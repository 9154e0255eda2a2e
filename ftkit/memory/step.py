"""Forward and backward pass of a training step by a plan, with real or fake tensors.

Sharding, activation checkpointing, loss and gradient accumulation are the functions that `ftkit.finetune` calls.

Shapes: B sequences of a micro-batch, T tokens, V vocabulary, D hidden.
"""

import re
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import create_selective_checkpoint_contexts
from transformers.initialization import no_init_weights

from ftkit._compat import enable_activation_checkpointing
from ftkit._modules import decoder_layers, unwrap_peft
from ftkit.adapters import attach
from ftkit.distributed import tensor_parallel
from ftkit.distributed.fsdp import apply_parallelism
from ftkit.distributed.mesh import fsdp_and_tp_meshes
from ftkit.freezing import freeze
from ftkit.loss import accumulate, chunk_loss, next_token_loss

from .plan import DTYPES, MemoryPlan
from .quantised import quantise
from .tracker import MemoryTracker

# Selective checkpointing of torch: matrix products are saved, the rest is computed again.
SAVED_OPERATIONS = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default]
SAVED = {"context_fn": partial(create_selective_checkpoint_contexts, SAVED_OPERATIONS)}


def apply_method(model: nn.Module, plan: MemoryPlan) -> nn.Module:
    """Cast the model, checkpoint its activations and freeze or adapt it by the plan; returns the model to train."""
    model.to(DTYPES[plan.param_dtype])
    if plan.activation_checkpointing:
        enable_activation_checkpointing(model, **SAVED if plan.checkpoint_policy == "save-matmuls" else {})
    if plan.checkpoint_policy == "alternate":
        for layer in decoder_layers(model)[1::2]:
            layer.gradient_checkpointing = False
    if plan.method == "lora":
        on_meta = next(model.parameters()).is_meta  # where PEFT would draw numbers on the CPU, which takes seconds
        with no_init_weights() if on_meta else nullcontext(), torch.device("meta") if on_meta else nullcontext():
            attached = attach(model, "lora", **plan.options)
        if plan.base_dtype:
            quantise(model, DTYPES[plan.compute_dtype])
            for module in attached.modules():
                module.cast_input_dtype_enabled = False  # PEFT's layers for 4 bits leave it to autocast
        return attached.train()
    if plan.freeze:
        freeze(model, plan.freeze)
    return model.train()


def tp_shard_dims(model: nn.Module) -> dict[int, int]:
    """The id of each parameter that tensor parallelism splits -> the dimension. Raises as `tp_plan_of` does."""
    styles, dims = tensor_parallel.tp_plan_of(unwrap_peft(model)), {}
    for name, module in unwrap_peft(model).named_modules():
        style = styles.get(re.sub(r"\.\d+", ".*", name))
        for parameter in module.parameters(recurse=False):
            if style == "rowwise" and parameter.ndim > 1:
                dims[id(parameter)] = 1
            elif style in ("colwise", "colwise_gather_output", "embedding_rowwise"):
                dims[id(parameter)] = 0
    return dims


def apply_plan(model: nn.Module, plan: MemoryPlan, mesh: DeviceMesh | None) -> nn.Module:
    """Chunk the loss, then shard or replicate the model over the mesh (dp_replicate, dp_shard, tp)."""
    if plan.loss_chunk:
        chunk_loss(model, plan.loss_chunk)
    if mesh is None:
        return model
    if plan.ddp:
        return DistributedDataParallel(model)
    return apply_parallelism(model, *fsdp_and_tp_meshes(mesh), DTYPES[plan.compute_dtype], plan.reshard_after_forward)


def make_batch(plan: MemoryPlan, vocabulary: int, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """A micro-batch of (B, T) whose first sequence ends in padding, so that attention needs its mask.

    Or one of two conversations in each sequence, which positions tell apart: attention makes a mask of them.
    """
    ids = torch.arange(plan.micro_batch_size * plan.max_length, device=device) % vocabulary
    ids = ids.view(plan.micro_batch_size, plan.max_length)
    if plan.packing:
        positions = torch.arange(plan.max_length, device=device) % -(-plan.max_length // 2)
        return {"input_ids": ids, "position_ids": positions.expand_as(ids).clone(), "labels": ids.clone()}
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.clone()}


def forward_and_backward(
    model: nn.Module, plan: MemoryPlan, vocabulary: int, tracker: MemoryTracker | None = None
) -> None:
    """Run all micro-batches of a step, which accumulates gradients in `.grad`; `tracker` gets the phases."""
    compute, device = DTYPES[plan.compute_dtype], next(model.parameters()).device
    batches = [make_batch(plan, vocabulary, device) for _ in range(plan.accumulation)]  # as in ftkit.finetune
    mixed = not plan.sharded and any(p.dtype != compute for p in model.parameters() if p.is_floating_point())
    started = 0

    def loss_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        nonlocal started
        started += 1
        if tracker:
            tracker.prefix = "" if started == len(batches) else "accumulating, "
            tracker.begin("forward")
        loss = next_token_loss(model, batch, compute, mixed, bool(plan.loss_chunk))
        if tracker:
            tracker.begin("backward through the head")
        return loss

    accumulate(model, batches, loss_of)


def mark_layers(model: nn.Module, tracker: MemoryTracker, front: int = 2, back: int = 2) -> None:
    """Begin a phase when the backward pass enters a layer, and a part of the phase when the forward pass does.

    One each for the layers at the `front` and at the `back`, and one for those between.
    """

    def watch(name: str, _module, _args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.requires_grad:
            hidden.register_hook(lambda _: tracker.begin(f"backward, layer {name}"))

    layers = decoder_layers(model)
    for index, layer in enumerate(layers):
        above = len(layers) - 1 - index
        ends = f"{index} above the first" if index < front else f"{above} below the last"
        name = ends if index < front or above < back else "between"
        layer.register_forward_pre_hook(lambda *_, name=name: tracker.enter(name))
        layer.register_forward_hook(partial(watch, name))


def label_gradients(model: nn.Module, tracker: MemoryTracker) -> None:
    """Label each gradient as soon as its parameter has it."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: tracker.label([p.grad], "gradients"))
