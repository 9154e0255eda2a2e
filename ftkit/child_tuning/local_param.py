"""The part of a parameter that one process updates."""

from dataclasses import dataclass

import torch

from ftkit.dtensor import Region


@dataclass
class LocalParam:
    """What one process updates of one parameter in one optimizer step; all tensors are local."""

    param: torch.Tensor
    grad: torch.Tensor  # of the parameter's shape
    moments: list[torch.Tensor | None]  # exp_avg, exp_avg_sq, and max_exp_avg_sq with amsgrad
    step: int  # this optimizer step, counted from 1
    region: Region  # where the local tensors lie in the whole parameter
    key: int  # of this step's mask (task-free)
    mask: torch.Tensor | None = None  # bool, of the parameter's shape (task-dependent)
    mask_indices: torch.Tensor | None = None  # or the mask's flat indices, with moments of these elements alone
