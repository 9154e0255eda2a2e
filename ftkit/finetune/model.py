"""The model of a run, whole or sharded, and its optimizer."""

import torch
from torch import nn
from tqdm import tqdm
from transformers.integrations.neftune import activate_neftune

from ftkit._compat import conversions_on_load, enable_activation_checkpointing
from ftkit.adapters.saving import base_name
from ftkit.batching import global_batch, micro_batches
from ftkit.child_tuning import fisher_mask, load_masks, save_masks
from ftkit.distributed.fsdp import apply_compile, apply_parallelism
from ftkit.distributed.loading import load_from_rank0, load_sharded_model
from ftkit.distributed.mesh import DistributedContext
from ftkit.freezing import freeze
from ftkit.loading import load_checked
from ftkit.loss import IGNORE_INDEX, chunk_loss
from ftkit.models import meta_model

from .config import Run
from .data import TrainingData
from .lora import attach_lora, reset_adapters
from .loss import Loss
from .optimizers import OPTIMIZERS, parameter_groups
from .quantised import is_quantised, load_quantised


def load_model(run: Run, source: str, context: DistributedContext) -> nn.Module:
    """The model to train, with master weights in float32, sharded where there are several ranks."""
    config = run.config

    def prepare(model: nn.Module) -> nn.Module:
        if config.activation_checkpointing:
            enable_activation_checkpointing(model)
        if config.compile:
            apply_compile(model)
        if run.lora:  # a frozen base needs no master weights
            model = attach_lora(model, None if is_quantised(config) else run.compute_dtype, **run.lora_options)
        elif config.freeze:
            freeze(model, config.freeze)
        if config.neftune_noise_alpha:
            activate_neftune(model, config.neftune_noise_alpha)
        if config.loss_chunk:
            chunk_loss(model, config.loss_chunk)
        return model.train()

    def build_meta() -> nn.Module:
        return prepare(meta_model(source))

    def parallelize(model: nn.Module) -> nn.Module:
        return apply_parallelism(model, context.mesh, context.tp_mesh, run.compute_dtype, config.reshard_after_forward)

    def load_whole() -> nn.Module:
        device = torch.device("cpu") if context.is_distributed else context.device
        if is_quantised(config):
            model = load_quantised(source, config.load_in_4bit, run.compute_dtype, device)
        else:
            model = load_checked(source, dtype=torch.float32).to(device)
        model = prepare(model)
        reset_adapters(model, config.seed)
        return model

    if not context.is_distributed:
        return load_whole()
    if conversions_on_load(meta_model(source)):  # its files hold other tensors than the model, as with experts
        return load_from_rank0(build_meta, load_whole, parallelize, context.device)
    return load_sharded_model(
        build_meta,
        parallelize,
        source,
        context.device,
        key_map=base_name if run.lora else lambda name: name,
        init_fn=lambda model: reset_adapters(model, config.seed),
    )


def make_optimizer(run: Run, model: nn.Module, data: TrainingData, loss: Loss) -> torch.optim.Optimizer:
    """The run's optimizer over the (sharded) parameters of `model`, without weight decay on norms and biases."""
    entry = OPTIMIZERS[run.config.optimizer]
    groups = parameter_groups(model, run.config)
    return entry.build(groups, run.config, fisher_masks(run, model, data, loss) if entry.needs_masks else None)


def fisher_masks(run: Run, model: nn.Module, data: TrainingData, loss: Loss) -> dict[str, torch.Tensor]:
    """Masks of the weights with the largest Fisher information on the first examples of the first epoch.

    They are stored in OUTPUT/masks.safetensors, and a resumed run reads them from there.
    """
    config, path = run.config, run.output / "masks.safetensors"
    if not run.resume:
        examples = global_batch(data.train, 0, min(config.fisher_rows, len(data.train)), config.seed)
        progress = tqdm(examples, desc="Fisher information", disable=not loss.context.is_main_process)
        # Every rank takes every example: only the average of equal gradients is an example's gradient.
        batches = (micro_batches([example], 1, data.pad_id, 0, 1)[0] for example in progress)

        def mean_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return loss(model, batch) / (batch["labels"][:, 1:] != IGNORE_INDEX).sum()

        save_masks(fisher_mask(model, batches, config.reserve_p, loss=mean_loss), path)
    return load_masks(path)
