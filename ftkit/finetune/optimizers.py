from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from ftkit.batching import global_batch, micro_batches
from ftkit.child_tuning import ChildTuningAdamW, fisher_mask, load_masks, save_masks
from ftkit.distributed.mesh import DistributedContext
from ftkit.loss import IGNORE_INDEX
from ftkit.parameters import decay_groups

from .config import Config, choices
from .data import TrainingData
from .loss import summed_loss

# What an optimizer of the program is to an estimate: every one that it has, so that a new one cannot pass for another.
OPTIMIZERS = {
    "adamw": {"optimizer": "adamw"},
    "child-tuning": {"optimizer": "child-tuning", "child_state": "task-free"},
    "child-tuning-d": {"optimizer": "child-tuning", "child_state": "compact"},
}


def make_optimizer(
    config: Config, model: nn.Module, inputs: TrainingData, context: DistributedContext
) -> torch.optim.Optimizer:
    """Raises ValueError for an optimizer that is not one of the program's."""
    groups = decay_groups(model.named_parameters(), config.weight_decay)
    child = {"lr": config.lr, "reserve_p": config.reserve_p, "seed": config.seed}
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr)
        case "child-tuning":
            return ChildTuningAdamW(groups, **child)
        case "child-tuning-d":
            masks = child_masks(config, model, inputs, context)
            return ChildTuningAdamW(groups, **child, mode="task-dependent", gradient_mask=masks)
    raise ValueError(f"--optimizer is {config.optimizer!r}: give one of {', '.join(choices('optimizer'))}")


def child_masks(
    config: Config, model: nn.Module, inputs: TrainingData, context: DistributedContext
) -> dict[str, torch.Tensor]:
    """The weights of largest Fisher information on the first rows of the first epoch, kept for a resumed run."""
    path = Path(config.output, "masks.safetensors")
    if not config.resume:
        rows = global_batch(inputs.train, 0, min(config.fisher_rows, len(inputs.train)), config.seed)
        each = tqdm(rows, desc="Fisher information", disable=not context.is_main_process)
        # Every rank takes every row: only the average of equal gradients is an example's gradient.
        batches = (micro_batches([row], 1, inputs.pad_id, 0, 1)[0] for row in each)

        def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return summed_loss(model, batch, config, context) / (batch["labels"][:, 1:] != IGNORE_INDEX).sum()

        save_masks(fisher_mask(model, batches, config.reserve_p, loss=loss), path)
    return load_masks(path)
