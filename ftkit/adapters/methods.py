"""Fine-tuning methods by name: attach an adapter or choose the weights that train, and build the optimizer.

`validate_lora_config` and `warn_about_lora_config` report, before PEFT attaches LoRA, what it would accept silently.
"""

import difflib
import inspect
import re
import warnings
from collections.abc import Callable, Iterable
from functools import partial

import torch
from peft import AdaptionPromptConfig, LoraConfig, PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.adaption_prompt.config import TRANSFORMERS_MODEL_CONFIG
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.neftune import activate_neftune
from transformers.pytorch_utils import Conv1D

from ftkit import freezing as presets
from ftkit._compat import fix_adaption_prompt_bias
from ftkit._modules import near_names
from ftkit.child_tuning import ChildTuningAdamW
from ftkit.parameters import decay_groups

CAUSAL = TaskType.CAUSAL_LM


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
    """Low-rank factors added to each target module: W + (lora_alpha / r) B A (Hu et al. 2021).

    `target_modules` and `modules_to_save` (fully trained) are PEFT's: "all-linear", ends of names, or a regular
    expression for whole names. `neftune_alpha` adds NEFTune's noise to the embeddings in training. Raises ValueError
    for a name without a match and for an `r` larger than a target's smaller side.
    """
    validate_lora_config(model, target_modules, modules_to_save or [], r)
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
    warn_about_lora_config(model, config)
    attached = get_peft_model(model, config)
    if neftune_alpha:
        activate_neftune(attached, neftune_alpha)
    return attached


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
            loraplus_lr_embedding=lr,  # because PEFT's default, 1e-6, hardly trains an embedding
        )
    return torch.optim.AdamW(decay_groups(model.named_parameters(), weight_decay), lr=lr)


def validate_lora_config(
    model: PreTrainedModel, target_modules: str | list[str], modules_to_save: list[str], r: int
) -> None:
    """Raise ValueError for names without a match, targets that are no matrices, and an impossible rank `r`."""
    modules = {name: module for name, module in model.named_modules() if name}
    targets = target_modules_of(model, target_modules)
    if not targets:
        raise ValueError(_no_match(f"target_modules={target_modules!r}", target_modules, modules))
    named = [] if isinstance(target_modules, str) else target_modules
    for what, each in [("target_modules", name) for name in named] + [("modules_to_save", m) for m in modules_to_save]:
        if not any(_ends_with(name, [each]) for name in modules):
            raise ValueError(_no_match(f"{each!r} of {what}", each, modules))
    if r < 1:
        raise ValueError(f"r is {r}: a rank is 1 or more")
    for name, module in targets.items():
        # A norm, or a block of several layers; quantised layers may keep their weights under another name.
        if getattr(module, "weight", torch.empty(1)).ndim < 2 and not hasattr(module, "qweight"):
            raise ValueError(
                f"{name} is a {type(module).__name__}, and LoRA needs a matrix: name the layers in it, or "
                "train it fully with modules_to_save"
            )
        if isinstance(module, nn.Linear | nn.Embedding | Conv1D) and r > min(module.weight.shape):
            shape = "×".join(map(str, module.weight.shape))
            raise ValueError(
                f"r is {r}, and {name} is {shape}: its rank is {min(module.weight.shape)} at most; "
                "give a smaller r, or train it fully with modules_to_save"
            )


def target_modules_of(model: PreTrainedModel, target_modules: str | list[str]) -> dict[str, nn.Module]:
    """The modules by name that PEFT adapts for `target_modules`."""
    head = model.get_output_embeddings()
    modules = {name: module for name, module in model.named_modules() if name}
    if target_modules == "all-linear":
        return {n: m for n, m in modules.items() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    if isinstance(target_modules, str):
        return {n: m for n, m in modules.items() if re.fullmatch(target_modules, n)}
    return {n: m for n, m in modules.items() if _ends_with(n, target_modules)}


def warn_about_lora_config(model: PreTrainedModel, config: LoraConfig) -> None:
    """Warn about settings that PEFT accepts silently and users rarely intend."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    save = config.modules_to_save or []
    both = [n for n in target_modules_of(model, config.target_modules) if _ends_with(n, save)]
    if both:
        _warn(
            f"{both[0]} is in target_modules and in modules_to_save: it is fully trained and gets no LoRA; "
            "name it in one of the two"
        )
    names = {id(module): name for name, module in model.named_modules()}
    saved = [m for m in (embedding, head) if m is not None and _ends_with(names.get(id(m), ""), save)]
    tied = head is not None and getattr(embedding, "weight", None) is getattr(head, "weight", 0)
    if tied and saved:
        _warn("embedding and LM head are tied: training the one trains the other")
    if tied and any(m in (embedding, head) for m in target_modules_of(model, config.target_modules).values()):
        _warn(
            "LoRA on a tied matrix changes one of its two uses only, and cannot be merged without changing "
            "the other: train it fully with modules_to_save"
        )
    if config.lora_dropout and not any(m.p for m in model.modules() if isinstance(m, nn.Dropout)):
        _warn(
            f"lora_dropout is {config.lora_dropout} in a model without dropout of its own: losses in training mode "
            "are noisy now; call model.eval() to compare"
        )


def _ends_with(name: str, ends: Iterable[str]) -> bool:
    return any(f".{name}".endswith(f".{end}") for end in ends)


def _no_match(what: str, pattern: str | list[str], modules: dict[str, nn.Module]) -> str:
    pattern = pattern if isinstance(pattern, str) else " ".join(pattern)
    return f"{what} matches no module; near names: {near_names(pattern, modules)}"


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=5)


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}: give 1 or more")
