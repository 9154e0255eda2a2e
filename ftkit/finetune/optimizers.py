"""The program's optimizers by name: how each is built, and what the memory estimate has to know of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from ftkit.child_tuning import ChildTuningAdamW

Groups = list[dict]  # parameter groups, as `ftkit.decay_groups` makes them
Masks = Mapping[str, torch.Tensor]  # parameter name -> bool tensor, as `fisher_mask` makes them


@dataclass(frozen=True)
class OptimizerEntry:
    """An optimizer that `--optimizer` can name. To add one, add it to OPTIMIZERS.

    `build` takes the parameter groups, the run's `Config` and, where `needs_masks`, Fisher masks. `memory` are the
    fields of `ftkit.memory.MemoryPlan` that describe its states.
    """

    build: Callable[..., torch.optim.Optimizer]
    memory: dict[str, str] = field(default_factory=dict)
    needs_masks: bool = False


def _adamw(groups: Groups, config, masks: None) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr)


def _child_tuning(groups: Groups, config, masks: Masks | None) -> torch.optim.Optimizer:
    options = {"lr": config.lr, "reserve_p": config.reserve_p, "seed": config.seed}
    if masks is not None:
        options |= {"mode": "task-dependent", "gradient_mask": masks}
    return ChildTuningAdamW(groups, **options)


OPTIMIZERS = {
    "adamw": OptimizerEntry(_adamw, {"optimizer": "adamw"}),
    "child-tuning": OptimizerEntry(_child_tuning, {"optimizer": "child-tuning", "child_state": "task-free"}),
    "child-tuning-d": OptimizerEntry(
        _child_tuning, {"optimizer": "child-tuning", "child_state": "compact"}, needs_masks=True
    ),
}
