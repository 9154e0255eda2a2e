"""Load a causal language model for training: choose device, dtype and attention, and check the weights."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import is_flash_attn_2_available, logging

from ftkit.distributed.device import DeviceInfo, pick_device

from ._compat import supported_attention
from ._modules import first_names
from .chat import add_chat_template, choose_pad_token
from .conversations import training_template
from .models import (
    check_not_quantised,
    explain_two_heads,
    load_causal_lm,
    load_config,
    load_tokenizer,
    resolve_model,
)
from .parameters import count_parameters


@dataclass(frozen=True)
class Loaded:
    """A loaded model; prints as a report with one line per choice and check."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: DeviceInfo
    report: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.report)


def load_for_training(name: str | Path | None = None, dtype: torch.dtype | None = torch.float32) -> Loaded:
    """Load a model and its tokenizer onto the best device.

    The tokenizer gets a pad token distinct from EOS, and a chat template with generation markers: its own, or ChatML.

    Args:
        name: as in `resolve_model`.
        dtype: of the weights; None is the device's compute dtype. Full fine-tuning needs float32, because bfloat16
            rounds small updates away; None saves memory where most weights are frozen.

    Raises:
        ValueError: what `load_checked`, `resolve_model`, `load_base` and `training_template` raise.
    """
    source, device = resolve_model(name), pick_device()
    dtype = dtype or device.compute_dtype
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING[type(load_config(source))]  # first: it refuses models that need code
    attention, reason = pick_attention(device, dtype, architecture)
    tokenizer = load_tokenizer(source)
    model = load_checked(source, dtype=dtype, attn_implementation=attention)
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


def load_checked(source: str | Path, **options) -> PreTrainedModel:
    """`load_causal_lm` with `options`, then `check_loaded`. Raises ValueError, for a quantised model too."""
    check_not_quantised(load_config(source))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what transformers would report in a table, check_loaded says in a sentence
    try:
        model, info = load_causal_lm(source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except RuntimeError as error:
        if "automatic conversion of the weights" not in str(error):
            raise
        raise ValueError(
            f"transformers cannot convert the tensors of {source} for its architecture, because one is missing or has "
            "another shape: take a complete checkpoint"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    check_loaded(model, info)
    if unknown := sorted(info["unexpected_keys"]):
        kind = type(model).__name__
        warnings.warn(f"{source} also holds {first_names(unknown)}, which {kind} leaves out", stacklevel=2)
    return model


def pick_attention(
    device: DeviceInfo, dtype: torch.dtype, architecture: type[PreTrainedModel] = LlamaForCausalLM
) -> tuple[str, str]:
    """The `attn_implementation` for weights of `dtype`, and the reason: FlashAttention 2 where it runs, else sdpa.

    FlashAttention 2 does not take float32; sdpa uses torch's own flash kernel where it can. An architecture without
    sdpa gets eager.
    """
    sdpa, flash = supported_attention(architecture)
    if not sdpa:
        return "eager", f"as {architecture.__name__} has no sdpa"
    if device.device.type != "cuda":
        return "sdpa", "as FlashAttention needs a CUDA GPU"
    if torch.cuda.get_device_capability(device.device) < (8, 0):
        return "sdpa", "as FlashAttention needs a GPU of compute capability 8.0 or more"
    if dtype not in (torch.bfloat16, torch.float16):
        return "sdpa", "as FlashAttention takes no weights in float32"
    if not is_flash_attn_2_available():
        return "sdpa", "as the package flash-attn is not installed"
    if not flash:
        return "sdpa", f"as {architecture.__name__} has no FlashAttention"
    return "flash_attention_2", "as the GPU and the package flash-attn allow"


def explain_dtype(device: DeviceInfo) -> str:
    """Why the device computes in its dtype."""
    if device.compute_dtype == torch.bfloat16:
        return "which the GPU computes natively"
    if device.device.type == "cuda":
        return f"as the {torch.cuda.get_device_name(device.device)} has no native bfloat16"
    return "as bfloat16 is faster on newer CUDA GPUs only"


def check_loaded(model: PreTrainedModel, info: dict) -> None:
    """Raise ValueError for weights that are missing in the files, of another shape, not finite, or on meta.

    And for a head of its own in the files of a model whose configuration ties it to the embedding. `info` is what
    `from_pretrained` returns with `output_loading_info=True`.
    """
    for name, found, expected in sorted(info.get("mismatched_keys", ())):
        raise ValueError(
            f"{name} has the shape {tuple(found)} in the model's files and {tuple(expected)} by its config.json: "
            "is it the checkpoint of another model?"
        )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"{_subject(missing)} not in the model's files, so newly initialised: open the folder with the class that "
            "saved it, or save it again from the model that was trained"
        )
    if on_meta := count_parameters(model).on_meta:
        raise ValueError(f"{_subject(on_meta)} on meta, without memory: load without device_map, or with more memory")
    for head, embedding in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        if model.get_parameter(head) is not model.get_parameter(embedding):
            raise ValueError(explain_two_heads(model.config.name_or_path, head, embedding))
    if broken := [name for name, tensor in model.named_parameters() if not tensor.isfinite().all()]:
        raise ValueError(
            f"the model's files hold NaN or infinity in {first_names(broken)}: take an undamaged checkpoint"
        )


def _subject(names: Sequence[str]) -> str:
    return f"{first_names(names)} {'is' if len(names) == 1 else 'are'}"
