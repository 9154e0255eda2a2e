"""The relatives of Fisher masks: other ways to choose which weights train, and AdamW whose updates are masked.

Fixed masks are dicts of bool tensors by parameter name, as `ChildTuningAdamW(..., mode="task-dependent")` takes them.
"""

from collections.abc import Mapping

import torch
from torch import nn

from ftkit.adapters.lora import target_modules_of
from ftkit.child_tuning import gradient_mask


def linear_weights(model: nn.Module, exclude: str = "score") -> dict[str, nn.Parameter]:
    """The weight matrices of the linear layers that LoRA adapts by default, by parameter name.

    Neither embedding nor LM head, and none of the modules named `exclude`, such as a new classifier.
    """
    targets = target_modules_of(model, "all-linear")
    return {f"{name}.weight": module.weight for name, module in targets.items() if name != exclude}


def random_masks(weights: Mapping[str, torch.Tensor], share: float, seed: int) -> dict[str, torch.Tensor]:
    """One random mask for the whole training (Xu and Zhang 2024): about `share` of each matrix."""
    return {name: gradient_mask(w.shape, share, seed=seed, step=0, name=name) for name, w in weights.items()}


def magnitude_masks(weights: Mapping[str, torch.Tensor], share: float, rank: int = 0) -> dict[str, torch.Tensor]:
    """The entries of largest absolute value, exactly `round(share * n)` of each matrix of n entries.

    With a `rank`, those of the matrix's best approximation of that rank (LIFT, Liu et al. 2025); without, those of the
    matrix itself (Super-Tuning, 2026).
    """
    masks = {}
    for name, weight in weights.items():
        score = (low_rank(weight, rank) if rank else weight).detach().abs().flatten()
        mask = torch.zeros(score.numel(), dtype=torch.bool)
        mask[score.topk(round(share * score.numel())).indices.cpu()] = True
        masks[name] = mask.view(weight.shape)
    return masks


def low_rank(weight: torch.Tensor, rank: int) -> torch.Tensor:
    """The nearest matrix of that rank, in the Frobenius norm: the largest `rank` singular values."""
    u, s, v = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def matching_lora_rank(weights: Mapping[str, torch.Tensor], share: float) -> int:
    """The rank at which LoRA on these matrices trains about as many numbers as masks of that share."""
    a_rank = sum(sum(weight.shape) for weight in weights.values())  # rows of A and columns of B
    return max(1, round(share * sum(weight.numel() for weight in weights.values()) / a_rank))


class UpdateMaskedAdamW(torch.optim.AdamW):
    """AdamW that sees the whole gradient and then applies a random part of its update (SkipUpdate, Joo et al. 2026).

    Each step, each entry's change is kept with probability `keep_p` and rescaled by 1/keep_p, so that the mean change
    is AdamW's. Moments are updated everywhere, which is the difference from `ChildTuningAdamW`, whose moments see the
    masked gradient. The paper masks whole blocks and reports that single entries do as well.

    Args:
        named_params: (name, parameter) pairs, or groups of them; names key the masks.
        keep_p: probability of keeping an entry's change.
        seed: any integer.
        options: as in `torch.optim.AdamW`.
    """

    def __init__(self, named_params, lr: float, *, keep_p: float = 0.5, seed: int = 0, **options):
        super().__init__(named_params, lr=lr, **options)
        self.keep_p, self.seed = keep_p, seed

    @torch.no_grad()
    def step(self, closure=None):
        """AdamW's step, of which a random part is taken back."""
        named = [pair for g in self.param_groups for pair in zip(g["param_names"], g["params"], strict=True)]
        before = {name: param.clone() for name, param in named if param.grad is not None}
        loss = super().step(closure)
        for name, param in named:
            if name in before:
                param.copy_(before[name] + self.factor(name, param) * (param - before[name]))
        return loss

    def factor(self, name: str, param: torch.Tensor) -> torch.Tensor:
        """What the change of a parameter is multiplied by at the step just taken."""
        keep = gradient_mask(param.shape, self.keep_p, seed=self.seed, step=self.steps_of(param), name=name)
        return keep.to(param) / self.keep_p

    def steps_of(self, param: torch.Tensor) -> int:
        return int(self.state[param]["step"])


class Magma(UpdateMaskedAdamW):
    """AdamW that skips whole tensors at random and damps those whose gradient disagrees with its momentum.

    Joo et al. 2026: a tensor's change is kept with probability 0.5 and multiplied by the running mean s of
    sigmoid(cos(momentum, gradient) / 2), with factor 0.9; there is no rescaling. The blocks are the parameter tensors,
    and s begins with its first value. Input embedding and LM head are not masked.
    """

    def factor(self, name: str, param: torch.Tensor) -> torch.Tensor:
        if "embed_tokens" in name or "lm_head" in name:
            return torch.ones((), dtype=param.dtype)
        state = self.state[param]
        cosine = nn.functional.cosine_similarity(state["exp_avg"].flatten(), param.grad.flatten(), dim=0)
        now = torch.sigmoid(cosine / 2)
        state["alignment"] = 0.9 * state.get("alignment", now) + 0.1 * now
        keep = gradient_mask((1,), self.keep_p, seed=self.seed, step=self.steps_of(param), name=name)
        return keep.to(param) * state["alignment"]
