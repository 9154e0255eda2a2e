"""Fine-tuning methods by name: attach an adapter or choose the weights that train, and build the optimizer."""

import difflib
import inspect
from collections.abc import Callable
from functools import partial

import torch
from peft import AdaptionPromptConfig, PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG
from torch import nn
from transformers import PreTrainedModel

from ftkit import freezing as presets
from ftkit._compat import fix_adaption_prompt_bias
from ftkit.child_tuning import ChildTuningAdamW
from ftkit.parameters import decay_groups

from .lora import lora, loraplus_groups

CAUSAL = TaskType.CAUSAL_LM


def prefix(model: PreTrainedModel, num_virtual_tokens: int = 8) -> nn.Module:
    """Trained keys and values of virtual tokens before each sequence, in every layer (Li and Liang 2021)."""
    _positive("num_virtual_tokens", num_virtual_tokens)
    return get_peft_model(model, PrefixTuningConfig(task_type=CAUSAL, num_virtual_tokens=num_virtual_tokens))


def llama_adapter(model: PreTrainedModel, adapter_len: int = 8, adapter_layers: int = 0) -> nn.Module:
    """Prompts in the attention of the last `adapter_layers` (0: all), gated from zero (Zhang et al. 2023).

    Raises ValueError for an architecture that PEFT's adaption prompt does not support.
    """
    _positive("adapter_len", adapter_len)
    config = model.config.get_text_config()
    if config.model_type not in TRANSFORMERS_MODEL_CONFIG:
        raise ValueError(
            f"PEFT's adaption prompt does not support {config.model_type}, only "
            f"{', '.join(sorted(TRANSFORMERS_MODEL_CONFIG))}: prefix is the nearest method"
        )
    layers = config.num_hidden_layers
    if not 0 <= adapter_layers <= layers:
        raise ValueError(f"adapter_layers is {adapter_layers}, and the model has {layers}: give 0 to {layers}")
    prompts = AdaptionPromptConfig(task_type=CAUSAL, adapter_len=adapter_len, adapter_layers=adapter_layers or layers)
    return fix_adaption_prompt_bias(get_peft_model(model, prompts))


# Each changes the model in place. Adapters return PEFT's wrapper, presets the names of the parameters that train.
METHODS: dict[str, Callable] = {
    "full": presets.everything,
    "child-tuning": presets.everything,  # the optimizer masks gradients
    "head only": presets.head_only,
    "bitfit": presets.bitfit,
    "lora": lora,
    "dora": partial(lora, use_dora=True),  # LoRA on directions, magnitudes train separately (Liu et al. 2024)
    "lora+": lora,  # the optimizer has a learning rate of its own for B
    "prefix": prefix,
    "llama-adapter": llama_adapter,
}


def attach(model: PreTrainedModel, method: str, **options) -> nn.Module:
    """Set up `model`, in place, for a method of METHODS with its options; returns the model to train.

    For an adapter that is PEFT's wrapper. Raises ValueError, before any change, for an unknown method or option and
    for a model that the method does not support.
    """
    if isinstance(model, PeftModel):
        raise ValueError("the model has an adapter already: give its base, or use PEFT's add_adapter")
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1) or sorted(METHODS)
        raise ValueError(f"there is no method {method!r}; did you mean {', '.join(near)}?")
    function = METHODS[method]
    known = inspect.signature(function).parameters.keys() - {"model", *getattr(function, "keywords", ())}
    if unknown := sorted(options.keys() - known):
        takes = ", ".join(sorted(known)) or "none"
        raise ValueError(f"{method} has no option {unknown[0]!r}; its options: {takes}")
    attached = function(model, **options)
    return attached if isinstance(attached, nn.Module) else model


def make_optimizer(
    model: nn.Module,
    method: str,
    lr: float,
    *,
    weight_decay: float = 0.0,
    loraplus_lr_ratio: float = 16.0,
    reserve_p: float = 0.3,
    seed: int = 0,
) -> torch.optim.Optimizer:
    """AdamW over the trainable weights.

    For "lora+" the learning rate of B is `loraplus_lr_ratio` times that of A (Hayou et al. 2024); for "child-tuning" it
    is the task-free `ChildTuningAdamW` with `reserve_p` and `seed`.
    """
    groups = decay_groups(model.named_parameters(), weight_decay)
    if method == "child-tuning":
        return ChildTuningAdamW(groups, lr=lr, reserve_p=reserve_p, seed=seed)
    if method == "lora+":
        groups = loraplus_groups(groups, lr, loraplus_lr_ratio)
    return torch.optim.AdamW(groups, lr=lr)


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}: give 1 or more")
