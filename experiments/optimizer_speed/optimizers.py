"""The optimizers that the benchmark compares, all on the same weights and gradients."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ftkit.child_tuning import ChildTuningAdamW

# Small, so that weights shared by all candidates stay what they are, near enough.
LR, BETAS, EPS, WEIGHT_DECAY = 1e-6, (0.9, 0.999), 1e-8, 0.01
FUSED, FOREACH, ORIGINAL = "AdamW, fused", "AdamW, foreach", "original arithmetic"
FREE, DENSE, COMPACT = "ours, task-free", "ours, task-dependent, dense", "ours, task-dependent, compact"
NAMES = (FUSED, FOREACH, ORIGINAL, FREE, DENSE, COMPACT)


@dataclass
class Candidate:
    name: str
    step: Callable[[], None]
    params: list[torch.nn.Parameter]
    bandwidth_bound: int  # bytes that a step must read and write
    state_bytes: Callable[[], int]  # moments and masks, or the indices that stand for them
    sources: list[torch.Tensor] = field(default_factory=list)  # gradients to begin a step with; empty: shared

    def prepare(self) -> None:
        """Restore the gradients that a step has changed; this is not timed."""
        for param, source in zip(self.params, self.sources, strict=False):
            param.grad.copy_(source)


class OriginalArithmetic:
    """Task-free child-tuning as its authors' program computes it, operation by operation.

    Draw a Bernoulli tensor, rescale it by 1/p, multiply the gradient by it in place; then Adam, whose epsilon is not
    corrected for bias; then the decay, of the weights already moved (Xu et al., EMNLP 2021, and the
    `ChildTuning` folder of alibaba/AliceMind).
    """

    def __init__(self, params: list, lr: float, betas: tuple, eps: float, weight_decay: float, reserve_p: float):
        self.params, self.lr, self.betas, self.eps = params, lr, betas, eps
        self.weight_decay, self.reserve_p, self.count = weight_decay, reserve_p, 0
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in params]

    @torch.no_grad()
    def step(self) -> None:
        self.count += 1
        beta1, beta2 = self.betas
        size = self.lr * math.sqrt(1 - beta2**self.count) / (1 - beta1**self.count)
        for param, (m, v) in zip(self.params, self.moments, strict=True):
            keep = torch.distributions.Bernoulli(torch.full_like(param.grad, self.reserve_p)).sample()
            param.grad *= keep / self.reserve_p
            m.mul_(beta1).add_(param.grad, alpha=1 - beta1)
            v.mul_(beta2).addcmul_(param.grad, param.grad, value=1 - beta2)
            param.addcdiv_(m, v.sqrt().add_(self.eps), value=-size)
            param.add_(param, alpha=-self.lr * self.weight_decay)


def random_masks(weights: dict[str, torch.Tensor], p: float) -> dict[str, torch.Tensor]:
    """Masks that keep each element with probability `p`: bool, equal for equal names, order and shapes."""
    generator = torch.Generator().manual_seed(0)
    return {n: (torch.rand(w.shape, generator=generator) < p).to(w.device) for n, w in weights.items()}


def make(
    name: str,
    weights: dict[str, torch.Tensor],
    gradients: dict[str, torch.Tensor],
    reserve_p: float,
    fisher_p: float,
    *,
    lr: float = LR,
    weight_decay: float = WEIGHT_DECAY,
) -> Candidate:
    """One candidate on weights and gradients that it shares with the others, all float32 and contiguous.

    Args:
        name: one of NAMES.
        reserve_p: probability of keeping an entry in task-free child-tuning.
        fisher_p: share of the elements that the task-dependent child has.

    The bandwidth bound counts, for each element, the bytes of weight, gradient and two moments that are read, and of
    weight and moments that are written: 28; for a child's elements only, beside a byte of mask for every
    element (dense) or a 4-byte index for each of the child's (compact). Memory moves in lines of 64 bytes or
    so, and nearly every line contains an element of a random mask, so a masked step cannot reach its bound.
    """
    params = [torch.nn.Parameter(weight) for weight in weights.values()]
    numel = sum(param.numel() for param in params)
    for param, gradient in zip(params, gradients.values(), strict=True):
        param.grad = gradient.clone() if name == ORIGINAL else gradient
    common = {"lr": lr, "betas": BETAS, "eps": EPS, "weight_decay": weight_decay}
    if name in (FUSED, FOREACH):
        chosen = {"fused": True} if name == FUSED else {"foreach": True}
        optimizer = torch.optim.AdamW(params, **common, **chosen)
        return Candidate(name, optimizer.step, params, 28 * numel, lambda: _state_bytes(optimizer))
    if name == ORIGINAL:
        original = OriginalArithmetic(params, reserve_p=reserve_p, **common)
        return Candidate(name, original.step, params, 28 * numel, lambda: 8 * numel, list(gradients.values()))
    named, own, bound = list(zip(weights, params, strict=True)), {"reserve_p": reserve_p}, 28 * numel
    if name != FREE:
        masks = random_masks(weights, fisher_p)
        kept = int(sum(mask.sum() for mask in masks.values()))
        own = {"mode": "task-dependent", "gradient_mask": masks, "compact_state": name == COMPACT}
        bound = 28 * kept + (4 * kept if name == COMPACT else numel)
    optimizer = ChildTuningAdamW(named, **common, **own)
    return Candidate(name, optimizer.step, params, bound, lambda: sum(optimizer.state_bytes().values()))


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    return sum(tensor.nbytes for tensor in tensors)
