"""Save an adapter with a fingerprint of its base model, and load it on that base only."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import nn

from ftkit._compat import fix_adaption_prompt_bias

BASE = "base.json"  # beside the adapter: the fingerprint
SAMPLE = 256  # elements of each tensor that go into the fingerprint

# Parts of the names of what adapters add, and of the wrappers that they put around modules of the base.
ADDED = re.compile(r"(^|\.)(lora_|trainable_tokens_|prompt_encoder|adaption_)")
COPY = r"modules_to_save\.\w+\."  # a fully trained one, of a module of the base
WRAPPERS = rf"^base_model\.model\.|base_layer\.|token_adapter\.|original_module\.|{COPY}|(?<=attn\.)model\."


def adapter_size_bytes(model: nn.Module) -> int:
    """Bytes to store for this fine-tune in addition to its base: the adapter, else every trainable weight."""
    if isinstance(model, PeftModel):
        tensors = get_peft_model_state_dict(model).values()
    else:
        tensors = [p for p in model.parameters() if p.requires_grad]
    return sum(t.numel() * t.element_size() for t in tensors)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes and the first SAMPLE elements of a base model's weights, without an adapter's.

    Elements are rounded to bfloat16, because the same base may be loaded in several precisions.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    digest = hashlib.sha256()
    for name, tensor in sorted(base_tensors(dict(base.named_parameters())).items()):
        sample = tensor.detach().flatten()[:SAMPLE].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def save_adapter(model: PeftModel, folder: str | Path) -> Path:
    """Save an adapter as PEFT does, with its base's fingerprint; returns the folder. Raises TypeError without one."""
    if not isinstance(model, PeftModel):
        raise TypeError(f"{type(model).__name__} has no adapter: save it with save_pretrained")
    folder = Path(folder)
    model.save_pretrained(folder)
    (folder / BASE).write_text(json.dumps({"sha256": fingerprint(model)}) + "\n", encoding="utf-8")
    return folder


def load_adapter(base: nn.Module, folder: str | Path, adapter_name: str = "default") -> PeftModel:
    """Load the adapter in `folder`, by ftkit or PEFT, onto `base`; all weights are frozen. Only safetensors are read.

    More adapters can be added with the returned model's own `load_adapter(folder, adapter_name)`. Raises
    FileNotFoundError where `folder` holds no adapter, and ValueError for one of another base.
    """
    folder = Path(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}: give a folder that save_adapter wrote")
    if (folder / BASE).exists():
        stored = json.loads((folder / BASE).read_text(encoding="utf-8"))["sha256"]
        if stored != fingerprint(base):
            named = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            raise ValueError(
                f"the adapter in {folder} was trained on another base"
                f" ({named.get('base_model_name_or_path') or 'unnamed'}): load it on that one, with its own weights"
            )
    try:
        loaded = PeftModel.from_pretrained(base, folder, adapter_name, use_safetensors=True)
    except RuntimeError as error:  # shapes
        said = str(error).strip().splitlines()
        raise ValueError(f"the adapter in {folder} does not fit this model: {said[-1].strip()}") from error
    loaded.requires_grad_(False)  # because with prompts PEFT leaves the base trainable
    return fix_adaption_prompt_bias(loaded)


def base_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of a wrapped model's tensors that are the base's, by their names there."""
    return {own: tensor for name, tensor in tensors.items() if not re.search(COPY, name) and (own := base_name(name))}


def base_name(parameter: str) -> str | None:
    """The base model's name of a parameter of the wrapped one, of a fully trained copy too; None for an adapter's own.

    AdaptedAttention calls the original `model`.
    """
    if ADDED.search(parameter):
        return None
    return re.sub(WRAPPERS, "", parameter)
