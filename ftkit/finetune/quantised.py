"""QLoRA (Dettmers et al. 2023): a frozen base in 4 or 8 bits by bitsandbytes, and LoRA on it."""

import torch
from peft import prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils import is_bitsandbytes_available

from ftkit.models import load_causal_lm


def is_quantised(config) -> bool:
    return config.load_in_4bit or config.load_in_8bit


def validate_quantised(config, ranks: int) -> None:
    """Raise ValueError, naming the flag of a `Config`, where the base cannot be quantised."""
    if not is_quantised(config):
        return
    given = "--load_in_4bit" if config.load_in_4bit else "--load_in_8bit"
    if config.load_in_4bit and config.load_in_8bit:
        raise ValueError("--load_in_4bit and --load_in_8bit exclude each other: give one")
    if config.method != "lora":
        raise ValueError(f"{given} freezes the base in integers: give --method lora, or leave it")
    if ranks > 1:
        raise ValueError(f"{given} does not shard the base: start one process, or leave it")
    if config.compile:
        raise ValueError(f"{given} does not run with --compile: leave one of the two")
    if not is_bitsandbytes_available():
        raise ValueError(f"{given} needs the package bitsandbytes: install it, or leave it")


def quantisation(load_in_4bit: bool, compute_dtype: torch.dtype) -> BitsAndBytesConfig:
    """QLoRA's: 4-bit NormalFloat with quantised constants, computed in `compute_dtype`; else LLM.int8()."""
    if not load_in_4bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def load_quantised(
    source: str, load_in_4bit: bool, compute_dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """The frozen base on `device`, with what is not quantised (norms, embeddings) in float32."""
    quantised = quantisation(load_in_4bit, compute_dtype)
    model = load_causal_lm(source, dtype=compute_dtype, quantization_config=quantised, device_map={"": device})
    model.register_state_dict_post_hook(drop_quantisation_states)
    # The program itself enables checkpointing, without reentrant autograd, which needs no hook on the embeddings.
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def drop_quantisation_states(model: nn.Module, state: dict, prefix: str, _metadata: dict) -> None:
    """A hook that leaves parameters and buffers in a state dict, and drops the scales that bitsandbytes adds.

    torch's distributed checkpoints look every key up as an attribute, and the base comes back from its own files.
    """
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    own = {prefix + name for name, _ in named}
    for key in [key for key in state if key.startswith(prefix) and key not in own]:
        del state[key]
