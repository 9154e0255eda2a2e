"""The program's optimizers by name: how each is built, and what the memory estimate has to know of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from ftkit.adapters.lora import loraplus_groups
from ftkit.child_tuning import ChildTuningAdamW
from ftkit.parameters import decay_groups

Groups = list[dict]  # parameter groups, as `parameter_groups` makes them
FUSED_DEVICES = ("cpu", "cuda")
Masks = Mapping[str, torch.Tensor]  # parameter name -> bool tensor, as `fisher_mask` makes them


@dataclass(frozen=True)
class OptimizerEntry:
    """An optimizer that `--optimizer` can name. To add one, add it to OPTIMIZERS.

    `build` takes the parameter groups, the run's `Config` and, where `needs_masks`, Fisher masks. `memory` are the
    fields of `ftkit.memory.MemoryPlan` that describe its states. `check` takes the device and the number of ranks,
    and raises ValueError where the optimizer does not run on them.
    """

    build: Callable[..., torch.optim.Optimizer]
    memory: dict[str, str] = field(default_factory=dict)
    needs_masks: bool = False
    check: Callable[[torch.device, int], None] = lambda device, ranks: None


def parameter_groups(model: nn.Module, config) -> Groups:
    """Groups without weight decay on norms and biases, and with LoRA+'s learning rate of B where the run has one."""
    groups = decay_groups(model.named_parameters(), config.weight_decay)
    return groups if config.loraplus_lr_ratio == 1 else loraplus_groups(groups, config.lr, config.loraplus_lr_ratio)


def _adam_options(config) -> dict:
    return {"lr": config.lr, "betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_epsilon}


def _adamw(groups: Groups, config, masks: None) -> torch.optim.Optimizer:
    # One pass over each tensor, without temporaries: the default loop makes a dozen. Moments have the weights' dtype.
    tensors = [parameter for group in groups for _, parameter in group["params"]]
    fused = all(t.device.type in FUSED_DEVICES and t.is_floating_point() for t in tensors)
    return torch.optim.AdamW(groups, **_adam_options(config), fused=fused or None)


def _adamw_8bit(groups: Groups, config, masks: None) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, **_adam_options(config))


def _check_8bit(device: torch.device, ranks: int) -> None:
    """By a step on a tensor large enough to get 8-bit states."""
    if ranks > 1:
        raise ValueError("--optimizer adamw_8bit takes no sharded parameters: start one process, or give adamw")
    try:
        from bitsandbytes.optim import AdamW8bit

        parameter = nn.Parameter(torch.zeros(8192, device=device))
        parameter.grad = torch.zeros_like(parameter)
        AdamW8bit([parameter]).step()
    except ImportError:
        raise ValueError("--optimizer adamw_8bit needs the package bitsandbytes: install it, or give adamw") from None
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise ValueError(
            f"--optimizer adamw_8bit: bitsandbytes does not run on {device} ({said}): give adamw"
        ) from None


def _child_tuning(groups: Groups, config, masks: Masks | None) -> torch.optim.Optimizer:
    options = {**_adam_options(config), "reserve_p": config.reserve_p, "seed": config.seed}
    if masks is not None:
        options |= {"mode": "task-dependent", "gradient_mask": masks}
    return ChildTuningAdamW(groups, **options)


OPTIMIZERS = {
    "adamw": OptimizerEntry(_adamw, {"optimizer": "adamw"}),
    "child-tuning": OptimizerEntry(_child_tuning, {"optimizer": "child-tuning", "child_state": "task-free"}),
    "child-tuning-d": OptimizerEntry(
        _child_tuning, {"optimizer": "child-tuning", "child_state": "compact"}, needs_masks=True
    ),
    # An upper bound: the plan knows no moments of 8 bits.
    "adamw_8bit": OptimizerEntry(_adamw_8bit, {"optimizer": "adamw", "moment_dtype": "bfloat16"}, check=_check_8bit),
}
