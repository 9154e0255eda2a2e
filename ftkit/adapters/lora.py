"""LoRA by PEFT, with what PEFT would accept silently reported before it attaches anything."""

import copy
import re
import warnings
from collections.abc import Iterable

import torch
from peft import LoraConfig, TaskType, get_peft_model
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.neftune import activate_neftune
from transformers.pytorch_utils import Conv1D

from ftkit._modules import near_names


def lora(
    model: PreTrainedModel,
    r: int = 8,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
    target_modules: str | list[str] = "all-linear",
    modules_to_save: list[str] | None = None,
    use_dora: bool = False,
    use_rslora: bool = False,
    trainable_token_indices: list[int] | None = None,
    neftune_alpha: float = 0.0,
) -> nn.Module:
    """Low-rank factors added to each target module: W + (lora_alpha / r) B A (Hu et al. 2021).

    The options are PEFT's: `target_modules` and `modules_to_save` (fully trained) are "all-linear", ends of names, or a
    regular expression for whole names; `trainable_token_indices` are rows of the embedding that train.
    `neftune_alpha` adds NEFTune's noise to the embeddings in training. Raises ValueError for a name without a match
    and for an `r` larger than a named target's smaller side.
    """
    saved = modules_to_save or []
    validate_lora_config(model, target_modules, saved, r, trainable_token_indices or [])
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=r,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        target_modules=target_modules,
        exclude_modules=_bypassed(model) or None if target_modules == "all-linear" else None,
        modules_to_save=list(saved) or None,  # a copy, because PEFT adds tied names to it
        use_dora=use_dora,
        use_rslora=use_rslora,
        trainable_token_indices=trainable_token_indices,
        ensure_weight_tying=bool(tied_modules(model) and embeddings_among(model, saved)),
    )
    _validate_experts(model, config)
    warn_about_lora_config(model, config)
    attached = get_peft_model(model, config)
    if neftune_alpha:
        activate_neftune(attached, neftune_alpha)
    return attached


def loraplus_groups(groups: Iterable[dict], lr: float, ratio: float) -> list[dict]:
    """Optimizer groups of (name, parameter) pairs, with those of B taken out at the learning rate `lr` x `ratio`.

    All others keep `lr`: A, what trains fully, DoRA's magnitudes, and both factors of an embedding, whose first one has
    no width that the learning rate would have to scale with (Hayou et al. 2024).
    """
    rest, fast = [], []
    for group in groups:
        of_b = [entry for entry in group["params"] if "lora_B." in entry[0]]
        others = [entry for entry in group["params"] if "lora_B." not in entry[0]]
        rest += [{**group, "params": others, "lr": lr}] if others else []
        fast += [{**group, "params": of_b, "lr": lr * ratio}] if of_b else []
    return rest + fast


def validate_lora_config(
    model: PreTrainedModel,
    target_modules: str | list[str],
    modules_to_save: list[str],
    r: int,
    trainable_token_indices: list[int] = (),
) -> None:
    """Raise ValueError for names without a match, targets that are no matrices, and impossible ranks and tokens."""
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
        # "all-linear" takes layers such as a gate of 1×D as they are: a rank above theirs costs a little memory only.
        matrix = isinstance(module, nn.Linear | nn.Embedding | Conv1D) and target_modules != "all-linear"
        if matrix and r > min(module.weight.shape):
            shape = "×".join(map(str, module.weight.shape))
            raise ValueError(
                f"r is {r}, and {name} is {shape}: its rank is {min(module.weight.shape)} at most; "
                "give a smaller r, or train it fully with modules_to_save"
            )
    _validate_embeddings(model, targets, modules_to_save, trainable_token_indices)


def _validate_embeddings(
    model: PreTrainedModel, targets: dict[str, nn.Module], saved: list[str], tokens: list[int]
) -> None:
    own, tied = embeddings_among(model, saved), tied_modules(model)
    if tied and (unknown := [n for n in own if n.split(".")[-1] not in EMBEDDING_LAYER_NAMES]):
        raise ValueError(
            f"{unknown[0]} of modules_to_save is tied, and PEFT ties only {' and '.join(EMBEDDING_LAYER_NAMES)}: "
            "leave it out, or train all weights"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if wrong := [token for token in tokens if not 0 <= token < rows]:
        raise ValueError(f"trainable_token_indices has {wrong[0]}, and the model embeds {rows} tokens")
    names = {module: name for name, module in model.named_modules()}
    embedding = names[model.get_input_embeddings()]
    taken = targets.keys() | set(own)
    if tokens and taken & set(tied or [embedding]):
        raise ValueError(
            f"trainable_token_indices trains rows of {embedding}, and target_modules or modules_to_save names it or "
            "the LM head tied to it: leave one of the two"
        )


def _validate_experts(model: PreTrainedModel, config: LoraConfig) -> None:
    """PEFT turns targets in some mixtures of experts, whose matrices are one parameter, into target_parameters."""
    converted = copy.deepcopy(config)
    convert_peft_config_for_transformers(converted, model, [])
    given = "use_dora" if config.use_dora else "lora_dropout" if config.lora_dropout else ""
    if given and converted.target_parameters:
        raise ValueError(
            f"{given} does not go with LoRA on the experts ({', '.join(sorted(converted.target_parameters))}): "
            "leave it, or name other layers in target_modules"
        )


def target_modules_of(model: PreTrainedModel, target_modules: str | list[str]) -> dict[str, nn.Module]:
    """The modules by name that PEFT adapts for `target_modules`."""
    head = model.get_output_embeddings()
    modules = {name: module for name, module in model.named_modules() if name}
    if target_modules == "all-linear":
        bypassed = _bypassed(model)
        linear = {n: m for n, m in modules.items() if isinstance(m, nn.Linear | Conv1D) and n not in bypassed}
        return {n: m for n, m in linear.items() if m is not head}
    if isinstance(target_modules, str):
        return {n: m for n, m in modules.items() if re.fullmatch(target_modules, n)}
    return {n: m for n, m in modules.items() if _ends_with(n, target_modules)}


def tied_modules(model: PreTrainedModel) -> list[str]:
    """Names of input embedding and LM head where they share one matrix, else none."""
    pair = [model.get_input_embeddings(), model.get_output_embeddings()]
    if getattr(pair[0], "weight", None) is not getattr(pair[1], "weight", 0):
        return []
    return [name for name, module in model.named_modules() if module in pair]


def warn_about_lora_config(model: PreTrainedModel, config: LoraConfig) -> None:
    """Warn about settings that PEFT accepts silently and users rarely intend."""
    targets, save, tied = (
        target_modules_of(model, config.target_modules),
        config.modules_to_save or [],
        tied_modules(model),
    )
    if both := [n for n in targets if _ends_with(n, save)]:
        _warn(
            f"{both[0]} is in target_modules and in modules_to_save: it is fully trained and gets no LoRA; "
            "name it in one of the two"
        )
    if tied and embeddings_among(model, save):
        _warn("embedding and LM head are tied: training the one trains the other")
    if targets.keys() & set(tied):
        _warn(
            "LoRA on a tied matrix changes one of its two uses only, and cannot be merged without changing "
            "the other: train it fully with modules_to_save"
        )
    if config.lora_dropout and not any(m.p for m in model.modules() if isinstance(m, nn.Dropout)):
        _warn(
            f"lora_dropout is {config.lora_dropout} in a model without dropout of its own: losses in training mode "
            "are noisy now; call model.eval() to compare"
        )


def _bypassed(model: nn.Module) -> list[str]:
    """Output projections of Mamba mixers: fused kernels read their weight themselves, past an adapter."""
    mixers = {n: m for n, m in model.named_modules() if hasattr(m, "conv1d") and hasattr(m, "D")}
    return [f"{name}.out_proj" for name, mixer in mixers.items() if hasattr(mixer, "out_proj")]


def embeddings_among(model: PreTrainedModel, ends: list[str]) -> list[str]:
    """Names of the input embedding and the LM head, as far as they end as given."""
    pair = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [name for name, module in model.named_modules() if module in pair and _ends_with(name, ends)]


def _ends_with(name: str, ends: Iterable[str]) -> bool:
    return any(f".{name}".endswith(f".{end}") for end in ends)


def _no_match(what: str, pattern: str | list[str], modules: dict[str, nn.Module]) -> str:
    pattern = pattern if isinstance(pattern, str) else " ".join(pattern)
    return f"{what} matches no module; near names: {near_names(pattern, modules)}"


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=5)
