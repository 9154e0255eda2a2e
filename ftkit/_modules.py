"""Run or train a model to learn something about it, and leave no trace."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def preserve_modes(model: nn.Module) -> Iterator[None]:
    """Each module is in training or evaluation afterwards as it was before, after an exception too."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The whole model is in evaluation meanwhile (no dropout), and afterwards each module in its own mode again."""
    with preserve_modes(model):
        model.eval()
        yield


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Give a function that puts the weights back to where they were; call it at the end too, come what may.

    Put back are what trains when the block begins, buffers, gradients and the modes of training or evaluation. Within
    the block gradients begin as None. The copies lie in CPU memory.
    """
    tensors = [p for p in model.parameters() if p.requires_grad] + list(model.buffers())
    saved = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
    grads = [(p, p.grad) for p in model.parameters()]

    @torch.no_grad()
    def restart() -> None:
        for tensor, value in zip(tensors, saved, strict=True):
            tensor.copy_(value)
        for parameter, _ in grads:
            parameter.grad = None

    with preserve_modes(model):
        try:
            restart()
            yield restart
        finally:
            restart()
            for parameter, grad in grads:
                parameter.grad = grad


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The model's repeated blocks: the members of its longest ModuleList.

    Found by structure, not by class name, because sharding renames classes (FSDPLlamaDecoderLayer).
    Raises ValueError for a model without a ModuleList.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no ModuleList of layers to shard one by one")
    return list(max(lists, key=len))


# Names that DDP and AveragedModel, torch.compile, activation checkpointing and FSDP put in front of a module.
_WRAPPERS = frozenset({"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


def clean_name(name: str) -> str:
    """The name without what wrappers add: `module.layers.0._orig_mod.weight` becomes `layers.0.weight`."""
    *modules, parameter = name.split(".")
    return ".".join([part for part in modules if part not in _WRAPPERS] + [parameter])
