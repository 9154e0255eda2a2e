"""Load a causal language model for training, and say what was loaded: where, in which precision, with which attention.

The choices that differ between a laptop and a large GPU are made here, so that what follows is the same on both.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import is_flash_attn_2_available

from ftkit.distributed.device import DeviceInfo, pick_device

from .chat import add_chat_template, choose_pad_token
from .conversations import training_template
from .models import load_causal_lm, load_config, load_tokenizer, resolve_model
from .parameters import count_parameters


@dataclass(frozen=True)
class Loaded:
    """Prints as a report, a line for each choice and check."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: DeviceInfo
    report: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.report)


def load_for_training(name: str | Path | None = None, dtype: torch.dtype | None = torch.float32) -> Loaded:
    """Load `name` (as in `find_base`) onto the device, with weights in `dtype`; None for the device's compute dtype.

    float32 for full fine-tuning, whose small updates bfloat16 would round away; None where most weights are frozen.
    The tokenizer gets a pad token that ends no answer, its template the marks of the assistant's turns, and a model
    without a template ChatML. Raises ValueError when a weight was not in the files, CustomCodeError as `load_base`,
    and the errors of `find_base` and `training_template`.
    """
    source, device = resolve_model(name), pick_device()
    dtype = dtype or device.compute_dtype
    attention, reason = pick_attention(device, dtype)
    load_config(source)  # refuses what needs code before anything else is loaded
    tokenizer = load_tokenizer(source)
    model, info = load_causal_lm(source, dtype=dtype, attn_implementation=attention, output_loading_info=True)
    check_loaded(model, info)
    template = "its own chat template"
    if not tokenizer.chat_template:
        template = f"no chat template: ChatML added, {add_chat_template(tokenizer, model)} new tokens to train"
    tokenizer.chat_template = training_template(tokenizer)
    pad = choose_pad_token(tokenizer, model)
    model.to(device.device)
    weights = str(model.dtype).removeprefix("torch.")
    report = (
        f"device: {device}, {explain_dtype(device)}; weights in {weights}",
        f"attention: {attention}, {reason}",
        f"parameters: {count_parameters(model)}",
        "checks: every weight was in the files, none is on meta",
        f"tokenizer: {template}; pad token {pad.token} ({pad.origin})",
    )
    return Loaded(model, tokenizer, device, report)


def pick_attention(device: DeviceInfo, dtype: torch.dtype) -> tuple[str, str]:
    """The name of an attention that transformers knows, and why: FlashAttention 2 where it can run, else torch's.

    `dtype` is the weights'. Outside autocast, FlashAttention 2 fails on what float32 weights give it; torch's sdpa
    takes a flash kernel by itself where it may.
    """
    if device.device.type != "cuda":
        return "sdpa", "as FlashAttention needs a CUDA GPU"
    if torch.cuda.get_device_capability(device.device) < (8, 0):
        return "sdpa", "as FlashAttention needs a GPU of compute capability 8.0 or more"
    if dtype not in (torch.bfloat16, torch.float16):
        return "sdpa", "as FlashAttention takes no weights in float32"
    if not is_flash_attn_2_available():
        return "sdpa", "as the package flash-attn is not installed"
    return "flash_attention_2", "as the GPU and the package flash-attn allow"


def explain_dtype(device: DeviceInfo) -> str:
    """Why the device computes in its dtype."""
    if device.compute_dtype == torch.bfloat16:
        return "which the GPU computes natively"
    if device.device.type == "cuda":
        return f"as the {torch.cuda.get_device_name(device.device)} has no native bfloat16"
    return "as bfloat16 is faster on newer CUDA GPUs only"


def check_loaded(model: PreTrainedModel, info: dict) -> None:
    """Raise ValueError, with names, for weights that the files did not hold or that have no memory yet.

    `info` is what `from_pretrained` gives with `output_loading_info=True`.
    """
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{_some(missing)} not in the model's files, so newly initialised: open the folder with the class that "
            "saved it, or save it again from the model that was trained"
        )
    if on_meta := count_parameters(model).on_meta:
        raise ValueError(f"{_some(on_meta)} on meta, without memory: load without device_map, or with more memory")


def _some(names) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'}"
