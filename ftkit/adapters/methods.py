"""What trains, by the name of a method: the whole model, a part of it, or an adapter of PEFT's beside it."""

import difflib
import inspect
from collections.abc import Callable

import torch
from peft import AdaptionPromptConfig, LoraConfig, PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.neftune import activate_neftune

from ftkit import freezing_presets as presets
from ftkit.child_tuning import ChildTuningAdamW
from ftkit.optim import decay_groups

from .adaption_bias import without_second_bias
from .confusions import check_lora, warn_of_confusions

CAUSAL = TaskType.CAUSAL_LM


def full(model: PreTrainedModel) -> nn.Module:
    """Every weight trains."""
    presets.everything(model)
    return model


def head_only(model: PreTrainedModel) -> nn.Module:
    """The output matrix trains (and the embedding with it, where the two are tied)."""
    presets.head_only(model)
    return model


def bitfit(model: PreTrainedModel) -> nn.Module:
    """The biases train. Raises ValueError for a model without any."""
    presets.bitfit(model)
    return model


def lora(
    model: PreTrainedModel,
    r: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
    target_modules: str | list[str] = "all-linear",
    modules_to_save: list[str] | None = None,
    use_dora: bool = False,
    neftune_alpha: float = 0.0,
) -> nn.Module:
    """A product of two thin matrices beside each target: W + (lora_alpha / r) B A (Hu et al. 2021).

    `target_modules` and `modules_to_save` (trained whole) are PEFT's: "all-linear", ends of names, or a regular
    expression for whole names. `neftune_alpha` adds NEFTune's noise to the embeddings, in training only. Raises
    ValueError for a target that matches nothing and for an `r` larger than a target's smaller side.
    """
    check_lora(model, target_modules, modules_to_save or [], r)
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    config = LoraConfig(
        task_type=CAUSAL,
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=target_modules,
        modules_to_save=modules_to_save,
        use_dora=use_dora,
        ensure_weight_tying=bool(tied and modules_to_save),
    )
    warn_of_confusions(model, config)
    attached = get_peft_model(model, config)
    if neftune_alpha:
        activate_neftune(attached, neftune_alpha)
    return attached


def dora(model: PreTrainedModel, **options) -> nn.Module:
    """LoRA on the direction of each column, and a magnitude that trains apart (Liu et al. 2024)."""
    return lora(model, use_dora=True, **options)


def prefix(model: PreTrainedModel, num_virtual_tokens: int = 8) -> nn.Module:
    """Keys and values of virtual tokens before each row, in every layer (Li and Liang 2021)."""
    _positive("num_virtual_tokens", num_virtual_tokens)
    return get_peft_model(model, PrefixTuningConfig(task_type=CAUSAL, num_virtual_tokens=num_virtual_tokens))


def llama_adapter(model: PreTrainedModel, adapter_len: int = 8, adapter_layers: int = 0) -> nn.Module:
    """Prompts in the last layers' attention, behind a gate that starts at zero (Zhang et al. 2023).

    `adapter_layers` counts from the top; 0 takes all. Raises ValueError for an architecture that PEFT's adaption
    prompt does not know.
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
        raise ValueError(
            f"adapter_layers is {adapter_layers}, and the model has {layers}: give 0 to {layers}"
        )
    prompts = AdaptionPromptConfig(
        task_type=CAUSAL, adapter_len=adapter_len, adapter_layers=adapter_layers or layers
    )
    return without_second_bias(get_peft_model(model, prompts))


METHODS: dict[str, Callable[..., nn.Module]] = {
    "full": full,
    "child-tuning": full,  # its masks are the optimizer's
    "head only": head_only,
    "bitfit": bitfit,
    "lora": lora,
    "dora": dora,
    "lora+": lora,  # its second learning rate is the optimizer's
    "prefix": prefix,
    "llama-adapter": llama_adapter,
}


def attach(model: PreTrainedModel, method: str, **options) -> nn.Module:
    """Make `model` train by a method of METHODS, with that method's options; returns what to train.

    An adapter changes the model in place and returns PEFT's wrapper of it. Raises ValueError for a method or an
    option that does not exist and for what the method cannot do with this model; the model is then as it was.
    """
    if isinstance(model, PeftModel):
        raise ValueError("the model has an adapter already: give its base, or use PEFT's add_adapter")
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1) or sorted(METHODS)
        raise ValueError(f"there is no method {method!r}; did you mean {', '.join(near)}?")
    known = inspect.signature(lora if method == "dora" else METHODS[method]).parameters.keys() - {"model"}
    if method == "dora":
        known -= {"use_dora"}
    if unknown := sorted(options.keys() - known):
        takes = ", ".join(sorted(known)) or "none"
        raise ValueError(f"{method} has no option {unknown[0]!r}; its options: {takes}")
    return METHODS[method](model, **options)


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
    """AdamW over what trains; for "lora+" with the rate of B `loraplus_lr_ratio` times that of A; for "child-tuning"
    the task-free optimizer with masks of `reserve_p` and `seed`.
    """
    if method == "child-tuning":
        groups = decay_groups(model.named_parameters(), weight_decay)
        return ChildTuningAdamW(groups, lr=lr, reserve_p=reserve_p, seed=seed)
    if method == "lora+":
        return create_loraplus_optimizer(
            model,
            torch.optim.AdamW,
            lr=lr,
            loraplus_lr_ratio=loraplus_lr_ratio,
            loraplus_weight_decay=weight_decay,
            loraplus_lr_embedding=lr,  # PEFT's default, 1e-6, would leave a trained embedding where it is
        )
    return torch.optim.AdamW(decay_groups(model.named_parameters(), weight_decay), lr=lr)


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}: give 1 or more")
