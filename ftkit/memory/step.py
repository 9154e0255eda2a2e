"""One training step as a plan describes it: the same code for tensors that exist and for fake ones.

Shapes: B rows of a micro-batch, T tokens, V vocabulary, D hidden.
"""

import re
from collections.abc import Callable
from types import MethodType

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from ftkit.adapters import attach
from ftkit.distributed import tensor_parallel
from ftkit.distributed.sharding import decoder_layers
from ftkit.freezing import freeze
from ftkit.memory.live import LiveBytes
from ftkit.memory.plan import DTYPES, Plan

IGNORE_INDEX = -100


def apply_method(model: nn.Module, plan: Plan) -> nn.Module:
    """Weights in the plan's dtype, and what trains as its method says; returns the model to train."""
    model.to(DTYPES[plan.weights])
    if plan.method == "lora":
        return attach(model, "lora", **plan.options).train()
    if plan.method == "frozen":
        freeze(model, plan.freeze)
    return model.train()


def cut_along(model: nn.Module) -> dict[int, int]:
    """The dimension along which tensor parallelism cuts each parameter that it cuts, by the parameter's id.

    Raises ValueError for a model without a plan.
    """
    styles, along = tensor_parallel.layer_styles(causal_lm(model)), {}
    for name, module in causal_lm(model).named_modules():
        style = styles.get(re.sub(r"\.\d+", ".*", name))
        for parameter in module.parameters(recurse=False):
            if style == "rowwise" and parameter.ndim > 1:
                along[id(parameter)] = 1
            elif style in ("colwise", "colwise_gather_output", "embedding_rowwise"):
                along[id(parameter)] = 0
    return along


def causal_lm(model: nn.Module) -> nn.Module:
    """The transformers model inside PEFT's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def distribute(model: nn.Module, plan: Plan, mesh: DeviceMesh | None) -> nn.Module:
    """Checkpoint activations, chunk the loss, then split the model over the mesh (dp_replicate, dp_shard, tp)."""
    base = causal_lm(model)
    if plan.activation_checkpointing:
        enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        if hasattr(base, "enable_input_require_grads") and plan.method == "lora":
            base.enable_input_require_grads()
    base.forward = MethodType(summed_loss(base.forward, plan), base)
    if mesh is None:
        return model
    if plan.mesh[2] > 1:
        tensor_parallel.parallelize(base, mesh["tp"])
    if plan.ddp:
        return DistributedDataParallel(model)
    if plan.sharded:
        policy = MixedPrecisionPolicy(param_dtype=DTYPES[plan.compute], reduce_dtype=torch.float32)
        names = ("dp_replicate", "dp_shard") if plan.mesh[0] > 1 else ("dp_shard",)
        for layer in decoder_layers(model):
            fully_shard(
                layer, mesh=mesh[names], mp_policy=policy, reshard_after_forward=plan.reshard_after_forward
            )
        fully_shard(model, mesh=mesh[names], mp_policy=policy)  # the root keeps what it gathered, by default
    return model


def summed_loss(forward: Callable, plan: Plan) -> Callable:
    """A forward pass that returns the cross-entropy summed over tokens, in float32, as `ftkit.finetune` has it."""

    def from_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(
            logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )

    def whole(base: nn.Module, input_ids, attention_mask, labels, **_):
        logits = forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        return from_logits(logits[:, :-1], labels[:, 1:])

    def chunked(base: nn.Module, input_ids, attention_mask, labels, **_):
        inner = base.get_submodule(base.base_model_prefix)
        hidden = inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        hidden, labels = hidden[:, :-1].flatten(0, 1), labels[:, 1:].flatten()  # (B (T - 1), D), (B (T - 1))

        def part(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return from_logits(base.get_output_embeddings()(hidden), labels)

        parts = zip(hidden.split(plan.loss_chunk), labels.split(plan.loss_chunk), strict=True)
        return sum(checkpoint(part, h, wanted, use_reentrant=False) for h, wanted in parts)

    return chunked if plan.loss_chunk else whole


def make_batch(plan: Plan, vocabulary: int, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """A micro-batch of (B, T) whose first row ends in padding, so that attention has a mask as rows usually make it."""
    ids = torch.arange(plan.micro_batch_size * plan.max_length, device=device) % vocabulary
    ids = ids.view(plan.micro_batch_size, plan.max_length)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids}


def forward_and_backward(model: nn.Module, plan: Plan, batch: dict, live: LiveBytes | None = None) -> None:
    """All micro-batches of a step; gradients are in `.grad` afterwards. `live` is told the phases."""
    mixed = not plan.sharded and plan.compute != plan.weights
    device = batch["input_ids"].device.type
    for number in range(plan.accumulation):
        if plan.sharded:
            model.set_requires_gradient_sync(number + 1 == plan.accumulation)
        if live:
            live.prefix = "" if number + 1 == plan.accumulation else "accumulating, "
            live.begin("forward")
        with torch.autocast(device, DTYPES[plan.compute], enabled=mixed):
            loss = model(**batch)
        if live:
            live.begin("backward through the head")
        loss.backward()
        del loss


def mark_layers(model: nn.Module, live: LiveBytes) -> None:
    """Tell `live` when the backward pass enters a layer; the two at either end have a phase each."""
    layers = decoder_layers(model)

    def enter(index: int) -> Callable:
        above = len(layers) - 1 - index
        name = (
            f"{index} above the first" if index < 2 else f"{above} below the last" if above < 2 else "between"
        )

        def watch(_module, _args, output):
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(lambda _: live.begin(f"backward, layer {name}"))

        return watch

    for index, layer in enumerate(layers):
        layer.register_forward_hook(enter(index))


def label_gradients(model: nn.Module, live: LiveBytes) -> None:
    """Tell `live` what a gradient is, as soon as a parameter has it."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: live.label([p.grad], "gradients"))
