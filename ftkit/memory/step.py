"""One training step as a plan describes it, for tensors that exist and for fake ones.

What `ftkit.finetune` does it does by the same functions: split the model, checkpoint activations, compute the loss and
accumulate gradients.

Shapes: B rows of a micro-batch, T tokens, V vocabulary, D hidden.
"""

import re
from collections.abc import Callable
from types import MethodType

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from ftkit._compat import enable_activation_checkpointing
from ftkit._modules import decoder_layers
from ftkit.adapters import attach
from ftkit.distributed import tensor_parallel
from ftkit.distributed.fsdp import apply_parallelism
from ftkit.distributed.mesh import fsdp_and_tp_meshes
from ftkit.freezing import freeze
from ftkit.loss import accumulate, next_token_loss, summed_cross_entropy

from .plan import DTYPES, MemoryPlan
from .tracker import MemoryTracker


def apply_method(model: nn.Module, plan: MemoryPlan) -> nn.Module:
    """Weights in the plan's dtype, activations checkpointed, and what trains chosen; returns the model to train."""
    model.to(DTYPES[plan.weights])
    if plan.activation_checkpointing:
        enable_activation_checkpointing(model)
    if plan.method == "lora":
        return attach(model, "lora", **plan.options).train()
    if plan.freeze:
        freeze(model, plan.freeze)
    return model.train()


def tp_shard_dims(model: nn.Module) -> dict[int, int]:
    """The dimension along which tensor parallelism cuts each parameter that it cuts, by the parameter's id.

    Raises ValueError for a model without a plan.
    """
    styles, along = tensor_parallel.tp_plan_of(unwrap_peft(model)), {}
    for name, module in unwrap_peft(model).named_modules():
        style = styles.get(re.sub(r"\.\d+", ".*", name))
        for parameter in module.parameters(recurse=False):
            if style == "rowwise" and parameter.ndim > 1:
                along[id(parameter)] = 1
            elif style in ("colwise", "colwise_gather_output", "embedding_rowwise"):
                along[id(parameter)] = 0
    return along


def unwrap_peft(model: nn.Module) -> nn.Module:
    """The transformers model inside PEFT's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def apply_plan(model: nn.Module, plan: MemoryPlan, mesh: DeviceMesh | None) -> nn.Module:
    """Chunk the loss, then split the model over the mesh (dp_replicate, dp_shard, tp), as the program does."""
    if plan.loss_chunk:
        base = unwrap_peft(model)
        base.forward = MethodType(chunked_loss(plan.loss_chunk), base)
    if mesh is None:
        return model
    if plan.ddp:
        return DistributedDataParallel(model)
    return apply_parallelism(model, *fsdp_and_tp_meshes(mesh), DTYPES[plan.compute], plan.reshard_after_forward)


def chunked_loss(chunk: int) -> Callable:
    """A forward pass that returns the summed loss, and has the logits of `chunk` tokens at a time."""

    def forward(base: nn.Module, input_ids, attention_mask, labels, **_):
        inner = base.get_submodule(base.base_model_prefix)
        hidden = inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        hidden, labels = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()  # (B (T - 1), D), (B (T - 1))

        def part(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return summed_cross_entropy(base.get_output_embeddings()(hidden), labels)

        parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
        return sum(checkpoint(part, h, wanted, use_reentrant=False) for h, wanted in parts)

    return forward


def make_batch(plan: MemoryPlan, vocabulary: int, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """A micro-batch of (B, T) whose first row ends in padding, so that attention has a mask as rows usually make it."""
    ids = torch.arange(plan.micro_batch_size * plan.max_length, device=device) % vocabulary
    ids = ids.view(plan.micro_batch_size, plan.max_length)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.clone()}


def forward_and_backward(
    model: nn.Module, plan: MemoryPlan, vocabulary: int, live: MemoryTracker | None = None
) -> None:
    """All micro-batches of a step; gradients are in `.grad` afterwards. `live` is told the phases."""
    compute, device = DTYPES[plan.compute], next(model.parameters()).device
    batches = [make_batch(plan, vocabulary, device) for _ in range(plan.accumulation)]  # the program has all at once
    mixed = not plan.sharded and any(p.dtype != compute for p in model.parameters())
    begun = 0

    def loss_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        nonlocal begun
        begun += 1
        if live:
            live.prefix = "" if begun == len(batches) else "accumulating, "
            live.begin("forward")
        if plan.loss_chunk:
            with torch.autocast(device.type, compute, enabled=mixed):
                loss = model(**batch)
        else:
            loss = next_token_loss(model, batch, compute, mixed)
        if live:
            live.begin("backward through the head")
        return loss

    accumulate(model, batches, loss_of)


def mark_layers(model: nn.Module, live: MemoryTracker) -> None:
    """Tell `live` when the backward pass enters a layer; the two at either end have a phase each."""
    layers = decoder_layers(model)

    def enter(index: int) -> Callable:
        above = len(layers) - 1 - index
        name = f"{index} above the first" if index < 2 else f"{above} below the last" if above < 2 else "between"

        def watch(_module, _args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(lambda _: live.begin(f"backward, layer {name}"))

        return watch

    for index, layer in enumerate(layers):
        layer.register_forward_hook(enter(index))


def label_gradients(model: nn.Module, live: MemoryTracker) -> None:
    """Tell `live` what a gradient is, as soon as a parameter has it."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: live.label([p.grad], "gradients"))
