"""Checkers for 10_adapter_family: DoRA's matrix, NEFTune's noise, and the groups of LoRA+."""

import math

import torch

from . import WrongAnswer, checker, require_answer


@checker
def check_dora_weight(dora_weight) -> str:
    """Check `dora_weight(W, A, B, magnitude, scaling)`: each row of W + scaling·B·A at the length `magnitude`.

    W (out, in), A (r, in), B (out, r), magnitude (out,).
    """
    generator = torch.Generator().manual_seed(0)
    W, A, B = (torch.randn(*shape, generator=generator).double() for shape in ((5, 4), (2, 4), (5, 2)))
    magnitude, scaling = torch.rand(5, generator=generator).double() + 0.5, 2.0
    direction = W + scaling * B @ A
    wanted = magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)
    found = require_answer(dora_weight(W, A, B, magnitude, scaling))
    if not torch.is_tensor(found) or found.shape != W.shape:
        raise WrongAnswer(f"a matrix of W's shape {tuple(W.shape)} is wanted.")

    def like(other: torch.Tensor) -> bool:
        return torch.allclose(found, other, rtol=1e-9)

    if like(direction):
        raise WrongAnswer("that is LoRA: now bring each row to the length that magnitude gives.")
    if like(magnitude[:, None] * direction):
        raise WrongAnswer("divide each row by its own length before you multiply by magnitude.")
    if like(magnitude[:, None] * direction / direction.norm()):
        raise WrongAnswer("you divide by the length of the whole matrix: take norm(dim=1, keepdim=True).")
    if like(magnitude[:, None] * direction / W.norm(dim=1, keepdim=True)):
        raise WrongAnswer("divide by the length of W + scaling·B·A, not of W: the direction must have length 1.")
    unscaled = W + B @ A
    if like(magnitude[:, None] * unscaled / unscaled.norm(dim=1, keepdim=True)):
        raise WrongAnswer("B @ A has to be multiplied by scaling.")
    if not like(wanted):
        raise WrongAnswer("the rows of W + scaling·B·A should point where they point, with the lengths of magnitude.")
    return "every row has the length that magnitude gives, and the direction of W + scaling·B·A."


@checker
def check_neftune(neftune) -> str:
    """Check `neftune(embeddings, alpha)`: embeddings (B, L, D) plus uniform noise within alpha / √(L·D)."""
    alpha = 5.0
    for B, L, D in ((8, 64, 32), (64, 4, 16)):
        bound = alpha / math.sqrt(L * D)
        embeddings = torch.full((B, L, D), 3.0, dtype=torch.float64)
        torch.manual_seed(0)
        found = require_answer(neftune(embeddings, alpha))
        if not torch.is_tensor(found) or found.shape != embeddings.shape:
            raise WrongAnswer(f"a tensor of the embeddings' shape {(B, L, D)} is wanted.")
        noise = found - 3.0
        if noise.abs().max() == 0:
            raise WrongAnswer("no noise was added.")
        if abs(found.mean()) < 1:
            raise WrongAnswer("add the noise to the embeddings and return the sum.")
        if noise.min() >= 0:
            raise WrongAnswer("the noise is never negative: it should lie between minus the bound and the bound.")
        if noise.unique().numel() < noise.numel() / 2:
            raise WrongAnswer("every entry gets a noise of its own: draw B·L·D numbers.")
        spread = float(noise.std())
        if float(noise.abs().max()) > bound * 1.0001:
            if math.isclose(spread, bound, rel_tol=0.05) or math.isclose(spread, bound / math.sqrt(3), rel_tol=0.05):
                raise WrongAnswer("that noise is Gaussian, and goes beyond the bound: draw it uniformly.")
            raise WrongAnswer(f"the noise reaches {noise.abs().max():.3f}, and alpha / √(L·D) is {bound:.3f}.")
        if float(noise.abs().max()) < bound * 0.9:
            raise WrongAnswer(f"the noise stays below {noise.abs().max():.3f}, and alpha / √(L·D) is {bound:.3f}.")
        if not math.isclose(spread, bound / math.sqrt(3), rel_tol=0.05):
            raise WrongAnswer("within the bounds every value should be equally likely.")
    return "uniform between -alpha / √(L·D) and alpha / √(L·D), whatever the batch."


@checker
def check_loraplus_rates(loraplus_rates) -> str:
    """Check `loraplus_rates(names, lr, ratio)`: a dict from each name to its learning rate."""
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    b_layer = "base_model.model.model.lora_B_like.q_proj"  # A of a layer with an unlucky name
    names = [
        f"{layer}.lora_A.default.weight",
        f"{layer}.lora_B.default.weight",
        f"{b_layer}.lora_A.default.weight",
    ]
    lr, ratio = 1e-3, 16
    found = require_answer(loraplus_rates(names, lr, ratio))
    if not isinstance(found, dict) or set(found) != set(names):
        raise WrongAnswer("return a dict with a rate for each of the names.")
    a, b, unlucky = (found[name] for name in names)
    if math.isclose(a, lr * ratio) and math.isclose(b, lr):
        raise WrongAnswer("the other way round: B has the larger rate.")
    if math.isclose(a, lr / ratio):
        raise WrongAnswer("A keeps lr; B's is ratio times that.")
    if math.isclose(b, lr):
        raise WrongAnswer("B has to learn ratio times as fast as A.")
    if not (math.isclose(a, lr) and math.isclose(b, lr * ratio)):
        raise WrongAnswer(f"A should have {lr:g} and B {lr * ratio:g}, and they have {a:g} and {b:g}.")
    if not math.isclose(unlucky, lr):
        raise WrongAnswer("a layer may have lora_B in its own name: look for .lora_B. as a part of the name.")
    return "A at lr, B at ratio times lr, by the parts of the names."
