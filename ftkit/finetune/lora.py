"""LoRA on ranks: adapters that begin the same however many ranks hold them, and an export that carries them.

The base is frozen, so it is kept in the dtype that it is computed in; the adapters train in float32.
"""

import re
import zlib
from collections.abc import Mapping

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from ftkit.adapters import attach
from ftkit.dtensor import shard_like

ADAPTER = re.compile(r"lora_[AB]\.")


def attach_lora(model: PreTrainedModel, r: int, alpha: float, target_modules: str) -> PeftModel:
    """LoRA on `model`, which may be on meta, with adapters in float32. Raises ValueError as `attach` does."""
    attached = attach(model, "lora", r=r, lora_alpha=alpha, target_modules=target_modules)
    for name, parameter in attached.named_parameters():
        if ADAPTER.search(name):
            parameter.data = parameter.data.float()
    return attached


@torch.no_grad()
def reset_adapters(model: nn.Module, seed: int) -> None:
    """PEFT's start, A uniform within 1/sqrt(columns) and B zero, drawn from seed and name.

    So every rank draws the whole of a matrix and keeps its shard of it, and one process starts as many do.
    """
    for name, parameter in model.named_parameters():
        if "lora_B." in name:
            whole = torch.zeros(parameter.shape)
        elif "lora_A." in name:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
            whole = (2 * torch.rand(parameter.shape, generator=generator) - 1) / parameter.shape[1] ** 0.5
        else:
            continue
        parameter.copy_(shard_like(whole, parameter))


def base_file_name(parameter: str) -> str | None:
    """The name in the base's files of one of the wrapped model's parameters; None for an adapter's."""
    if ADAPTER.search(parameter):
        return None
    return parameter.removeprefix("base_model.model.").replace("base_layer.", "")


def attach_trained_adapters(
    base: PreTrainedModel, trained: Mapping[str, torch.Tensor], r: int, alpha: float, target_modules: str
) -> PeftModel:
    """The unsharded base with the adapters among `trained` on it. Raises RuntimeError where names do not fit."""
    attached = attach_lora(base, r, alpha, target_modules)
    adapters = {name: tensor for name, tensor in trained.items() if ADAPTER.search(name)}
    wanted = {name for name in attached.state_dict() if ADAPTER.search(name)}
    if wanted != adapters.keys():
        raise RuntimeError(f"adapters and model differ in {sorted(wanted ^ adapters.keys())[:3]}")
    attached.load_state_dict(adapters, strict=False)
    return attached
