"""What one process updates of one parameter in one step, by whatever path."""

from dataclasses import dataclass

import torch

from ftkit.dtensor import Region


@dataclass
class LocalParam:
    """What one process updates of one parameter in one step; all tensors are local."""

    param: torch.Tensor
    grad: torch.Tensor  # of the parameter's shape
    moments: list[torch.Tensor | None]  # exp_avg, exp_avg_sq, and max_exp_avg_sq with amsgrad
    step: int  # this optimizer step, counted from 1
    region: Region  # where the local tensors lie in the whole parameter
    key: int  # of this step's mask (task-free)
    child: torch.Tensor | None = None  # bool, of the parameter's shape: the given mask (task-dependent)
    child_index: torch.Tensor | None = None  # or its flat indices, with moments of the child alone
