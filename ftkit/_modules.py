"""Modules and their names: layers, norms, clean names, and contexts that restore a model's modes or state."""

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

# Names that DDP and AveragedModel, torch.compile, activation checkpointing and FSDP put in front of a module.
_WRAPPERS = frozenset({"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


@functools.lru_cache(maxsize=1 << 14)  # an optimizer asks for every name in every step
def clean_name(name: str) -> str:
    """The name without those of wrappers: `module.layers.0._orig_mod.weight` becomes `layers.0.weight`."""
    *modules, parameter = name.split(".")
    return ".".join([part for part in modules if part not in _WRAPPERS] + [parameter])


def is_norm(module: nn.Module) -> bool:
    """Whether the class has "norm" in its name, as LayerNorm and LlamaRMSNorm have."""
    return "norm" in type(module).__name__.lower()


def layer_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The outermost ModuleLists by name: of a decoder its blocks, but not the experts within one."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    return {name: m for name, m in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The model's repeated blocks: the members of its longest outermost ModuleList.

    Found by structure, because sharding renames classes (FSDPLlamaDecoderLayer). Raises ValueError for a model without
    a ModuleList.
    """
    lists = layer_lists(model).values()
    if not lists:
        raise ValueError(f"{type(model).__name__} has no ModuleList of layers to shard one by one")
    return list(max(lists, key=len))


def unwrap_peft(model: nn.Module) -> nn.Module:
    """The transformers model inside PEFT's wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def near_names(pattern: str, names: Iterable[str]) -> str:
    """The names or parts of names that look most like a pattern, for an error message; else the first ones."""
    names = sorted(names)
    words = sorted({word for name in names for word in (name, *name.split(".")) if not word.isdigit()})
    plain = re.sub(r"[^\w.]", "", pattern)  # without backslashes and brackets
    return ", ".join(difflib.get_close_matches(plain, words, n=3, cutoff=0.4) or names[:3])


def first_names(names: Sequence[str]) -> str:
    """The first three names and the number of the others, for an error message."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@contextmanager
def preserve_modes(model: nn.Module) -> Iterator[None]:
    """Restore each module's training mode when the block exits."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block (no dropout); each module's own mode is restored."""
    with preserve_modes(model):
        model.eval()
        yield


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Restore the model when the block exits, even after an exception; yields `reset`, which does so within it.

    Restored are the parameters that train, buffers, gradients and training modes. Within the block, and after each
    `reset`, gradients are None. The copies are in CPU memory.
    """
    tensors = [p for p in model.parameters() if p.requires_grad] + list(model.buffers())
    saved = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
    grads = [(p, p.grad) for p in model.parameters()]

    @torch.no_grad()
    def reset() -> None:
        for tensor, value in zip(tensors, saved, strict=True):
            tensor.copy_(value)
        for parameter, _ in grads:
            parameter.grad = None

    with preserve_modes(model):
        try:
            reset()
            yield reset
        finally:
            reset()
            for parameter, grad in grads:
                parameter.grad = grad
