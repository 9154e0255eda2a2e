"""The model and the optimizer of a run, on one process or on shards."""

import torch
from torch import nn

from ftkit._compat import conversions_on_load, enable_activation_checkpointing
from ftkit.distributed.fsdp import apply_compile, apply_parallelism
from ftkit.distributed.loading import load_from_rank0, load_sharded_model
from ftkit.distributed.mesh import DistributedContext
from ftkit.freezing import freeze
from ftkit.models import load_causal_lm, meta_model

from .config import Config, compute_dtype
from .lora import attach_lora, base_file_name, reset_adapters


def load_model(config: Config, source: str, context: DistributedContext) -> nn.Module:
    """The model to train: master weights in float32, sharded where there are several ranks."""
    lora, compute = config.method == "lora", compute_dtype(config, context)

    def prepare(model: nn.Module) -> nn.Module:
        if config.activation_checkpointing:
            enable_activation_checkpointing(model)
        if config.compile:
            apply_compile(model)
        if lora:  # a frozen base needs no master weights
            model = attach_lora(model.to(compute), config.lora_r, config.lora_alpha, config.target_modules)
        elif config.freeze:
            freeze(model, config.freeze)
        return model.train()

    def split(model: nn.Module) -> nn.Module:
        return apply_parallelism(model, context.mesh, context.tp_mesh, compute, config.reshard_after_forward)

    def initialise(model: nn.Module) -> None:
        reset_adapters(model, config.seed)

    def whole() -> nn.Module:
        model = load_causal_lm(source, dtype=torch.float32)
        model = prepare(model.to("cpu" if context.is_distributed else context.device))
        initialise(model)
        return model

    if not context.is_distributed:
        return whole()
    if conversions_on_load(meta_model(source)):  # its files hold other tensors than the model, as with experts
        return load_from_rank0(lambda: prepare(meta_model(source)), whole, split, context.device)
    return load_sharded_model(
        build_meta=lambda: prepare(meta_model(source)),
        apply_parallelism=split,
        source=source,
        device=context.device,
        key_map=base_file_name if lora else lambda name: name,
        init_fn=initialise,
    )
