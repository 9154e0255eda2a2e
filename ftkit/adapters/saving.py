"""Save an adapter with a fingerprint of its base, and refuse to load it on another."""

import hashlib
import json
import re
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import nn

from ftkit._compat import fix_adaption_prompt_bias

BASE = "base.json"
SAMPLE = 256  # elements of each tensor that go into the fingerprint


def adapter_size_bytes(model: nn.Module) -> int:
    """What has to be stored to have this fine-tune beside its base: the adapter, or else every weight that trains."""
    if isinstance(model, PeftModel):
        tensors = get_peft_model_state_dict(model).values()
    else:
        tensors = [p for p in model.parameters() if p.requires_grad]
    return sum(t.numel() * t.element_size() for t in tensors)


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes and the first elements of a base model's weights, rounded to bfloat16.

    Rounded, for the same base may be loaded in several precisions. An adapter on the model does not count.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    digest = hashlib.sha256()
    for name, tensor in sorted((_plain(n), p) for n, p in base.named_parameters() if _is_base(n)):
        sample = tensor.detach().flatten()[:SAMPLE].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def save_adapter(model: PeftModel, folder: str | Path) -> Path:
    """Write the adapter as PEFT does (safetensors and its config), with the base's fingerprint beside it."""
    if not isinstance(model, PeftModel):
        raise TypeError(f"{type(model).__name__} has no adapter: save it with save_pretrained")
    folder = Path(folder)
    model.save_pretrained(folder)
    (folder / BASE).write_text(json.dumps({"sha256": fingerprint(model)}) + "\n", encoding="utf-8")
    return folder


def load_adapter(base: nn.Module, folder: str | Path, adapter_name: str = "default") -> PeftModel:
    """The base with the adapter of `folder` on it, frozen, whoever saved that. Only safetensors are read.

    More adapters can be put beside it by PEFT's own `load_adapter(folder, adapter_name)` of what is returned.

    Raises FileNotFoundError where there is no adapter, and ValueError for one that was saved from another base.
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
    loaded.requires_grad_(False)  # with prompts PEFT leaves the base as it found it
    return fix_adaption_prompt_bias(loaded)


def _is_base(name: str) -> bool:
    added = ("lora_", "modules_to_save.", "prompt_encoder", "adaption_")
    return not any(part in name for part in added)


def _plain(name: str) -> str:
    """The name in the base model of a tensor that an adapter has wrapped; AdaptedAttention calls its own `model`."""
    return re.sub(r"base_layer\.|original_module\.|(?<=attn\.)model\.", "", name)
