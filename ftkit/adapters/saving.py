"""Save an adapter with a fingerprint of its base model, and load it on that base only."""

import hashlib
import json
import re
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import nn

from ftkit._compat import fix_adaption_prompt_bias

BASE = "base.json"  # beside the adapter: the fingerprint
SAMPLE = 256  # elements of each tensor that go into the fingerprint


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
    for name, tensor in sorted((_plain(n), p) for n, p in base.named_parameters() if _is_base(n)):
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


def _is_base(name: str) -> bool:
    added = ("lora_", "modules_to_save.", "prompt_encoder", "adaption_")
    return not any(part in name for part in added)


def _plain(name: str) -> str:
    """The base model's name of a tensor that an adapter wrapped; AdaptedAttention calls the original `model`."""
    return re.sub(r"base_layer\.|original_module\.|(?<=attn\.)model\.", "", name)
