"""The model and the optimizer of a run, on one process or on shards."""

from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from ftkit.batches import global_batch, micro_batches
from ftkit.child_tuning import ChildTuningAdamW, fisher_mask, load_masks, save_masks
from ftkit.conversations import IGNORE_INDEX
from ftkit.distributed.compiled import compile_layers
from ftkit.distributed.delayed_init import load_from_rank0
from ftkit.distributed.lora import attach_lora, file_name, reset_adapters
from ftkit.distributed.mesh import Ranks
from ftkit.distributed.shard_loading import load_shards
from ftkit.distributed.sharding import distribute
from ftkit.freezing import freeze
from ftkit.optim import decay_groups
from ftkit.pocket import empty_base, load_causal_lm
from ftkit.run_config import Config, choices
from ftkit.run_inputs import Inputs
from ftkit.run_loss import compute_dtype, summed_loss
from ftkit.torch_private import conversions_on_load, enable_activation_checkpointing


def load_model(config: Config, source: str, ranks: Ranks) -> nn.Module:
    """The model to train: master weights in float32, sharded where there are several ranks."""
    lora, compute = config.method == "lora", compute_dtype(config, ranks)

    def prepare(model: nn.Module) -> nn.Module:
        if config.activation_checkpointing:
            enable_activation_checkpointing(model)
        if config.compile:
            compile_layers(model)
        if lora:  # a frozen base needs no master weights
            model = attach_lora(model.to(compute), config.lora_r, config.lora_alpha, config.target_modules)
        elif config.freeze:
            freeze(model, config.freeze)
        return model.train()

    def split(model: nn.Module) -> nn.Module:
        return distribute(model, ranks.mesh, ranks.tp_mesh, compute, config.reshard_after_forward)

    def initialise(model: nn.Module) -> None:
        reset_adapters(model, config.seed)

    def whole() -> nn.Module:
        model = load_causal_lm(source, dtype=torch.float32)
        model = prepare(model.to("cpu" if ranks.mesh is not None else ranks.compute.device))
        initialise(model)
        return model

    if ranks.mesh is None:
        return whole()
    if conversions_on_load(
        empty_base(source)
    ):  # its files hold other tensors than the model, as with experts
        return load_from_rank0(lambda: prepare(empty_base(source)), whole, split, ranks.compute.device)
    return load_shards(
        build_empty=lambda: prepare(empty_base(source)),
        shard=split,
        source=source,
        device=ranks.compute.device,
        file_name=file_name if lora else lambda name: name,
        initialise=initialise,
    )


def make_optimizer(config: Config, model: nn.Module, inputs: Inputs, ranks: Ranks) -> torch.optim.Optimizer:
    """Raises ValueError for an optimizer that is not one of the program's."""
    groups = decay_groups(model.named_parameters(), config.weight_decay)
    child = {"lr": config.lr, "reserve_p": config.reserve_p, "seed": config.seed}
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr)
        case "child-tuning":
            return ChildTuningAdamW(groups, **child)
        case "child-tuning-d":
            masks = child_masks(config, model, inputs, ranks)
            return ChildTuningAdamW(groups, **child, mode="task-dependent", gradient_mask=masks)
    raise ValueError(f"--optimizer is {config.optimizer!r}: give one of {', '.join(choices('optimizer'))}")


def child_masks(config: Config, model: nn.Module, inputs: Inputs, ranks: Ranks) -> dict[str, torch.Tensor]:
    """The weights of largest Fisher information on the first rows of the first epoch, kept for a resumed run."""
    path = Path(config.output, "masks.safetensors")
    if not config.resume:
        rows = global_batch(inputs.train, 0, min(config.fisher_rows, len(inputs.train)), config.seed)
        each = tqdm(rows, desc="Fisher information", disable=not ranks.is_first)
        # Every rank takes every row: only the average of equal gradients is an example's gradient.
        batches = (micro_batches([row], 1, inputs.pad_id, 0, 1)[0] for row in each)

        def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return summed_loss(model, batch, config, ranks) / (batch["labels"][:, 1:] != IGNORE_INDEX).sum()

        save_masks(fisher_mask(model, batches, config.reserve_p, loss=loss), path)
    return load_masks(path)
