"""What goes wrong with LoRA without a word: said before it is attached."""

import difflib
import re
import warnings

import torch
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def check_lora(
    model: PreTrainedModel, target_modules: str | list[str], modules_to_save: list[str], r: int
) -> None:
    """Raises ValueError for a target or a module to save that matches nothing, a target that is no matrix, and an `r`
    that is no rank of one.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    targets = targeted(model, target_modules)
    if not targets:
        raise ValueError(_nothing(f"target_modules={target_modules!r}", target_modules, modules))
    wanted = [] if isinstance(target_modules, str) else target_modules
    for what, each in [("target_modules", w) for w in wanted] + [
        ("modules_to_save", m) for m in modules_to_save
    ]:
        if not any(_ends_with(name, each) for name in modules):
            raise ValueError(_nothing(f"{each!r} of {what}", each, modules))
    if r < 1:
        raise ValueError(f"r is {r}: a rank is 1 or more")
    for name, module in targets.items():
        # A norm, or a block of several layers; quantised layers may keep their weights under another name.
        if getattr(module, "weight", torch.empty(1)).ndim < 2 and not hasattr(module, "qweight"):
            raise ValueError(
                f"{name} is a {type(module).__name__}, and LoRA goes beside matrices: name the layers in it, or "
                "train it whole with modules_to_save"
            )
        if isinstance(module, nn.Linear | nn.Embedding | Conv1D) and r > min(module.weight.shape):
            shape = "×".join(map(str, module.weight.shape))
            raise ValueError(
                f"r is {r}, and {name} is {shape}: its rank is {min(module.weight.shape)} at most; "
                "give a smaller r, or train it whole with modules_to_save"
            )


def targeted(model: PreTrainedModel, target_modules: str | list[str]) -> dict[str, nn.Module]:
    """The modules that PEFT will put LoRA beside, by name."""
    head = model.get_output_embeddings()
    modules = {name: module for name, module in model.named_modules() if name}
    if target_modules == "all-linear":
        return {n: m for n, m in modules.items() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    if isinstance(target_modules, str):
        return {n: m for n, m in modules.items() if re.fullmatch(target_modules, n)}
    return {n: m for n, m in modules.items() if any(_ends_with(n, each) for each in target_modules)}


def warn_of_confusions(model: PreTrainedModel, config: LoraConfig) -> None:
    """Warn of what PEFT does without a word and users seldom mean."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    save = config.modules_to_save or []
    both = [n for n in targeted(model, config.target_modules) if any(_ends_with(n, each) for each in save)]
    if both:
        _warn(
            f"{both[0]} is in target_modules and in modules_to_save: it is trained whole, and its LoRA is not "
            "made; name it in one of the two"
        )
    names = {id(module): name for name, module in model.named_modules()}
    saved = [m for m in (embedding, head) if m is not None and _saved(names.get(id(m), ""), save)]
    tied = head is not None and getattr(embedding, "weight", None) is getattr(head, "weight", 0)
    if tied and saved:
        _warn("embedding and output matrix are tied: training the one trains the other")
    if tied and any(m in (embedding, head) for m in targeted(model, config.target_modules).values()):
        _warn(
            "a LoRA beside a tied matrix changes one of its two uses only, and cannot be merged without changing "
            "the other: train it whole with modules_to_save"
        )
    if config.lora_dropout and not any(m.p for m in model.modules() if isinstance(m, nn.Dropout)):
        _warn(
            f"lora_dropout is {config.lora_dropout} in a model without dropout of its own: losses in training mode "
            "are noisy now; call model.eval() to compare"
        )


def _saved(name: str, modules_to_save: list[str]) -> bool:
    return any(_ends_with(name, each) for each in modules_to_save)


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _nothing(what: str, pattern: str | list[str], modules: dict[str, nn.Module]) -> str:
    words = sorted({word for name in modules for word in (name, name.split(".")[-1]) if not word.isdigit()})
    plain = re.sub(r"[^\w.]", "", pattern if isinstance(pattern, str) else " ".join(pattern))
    near = difflib.get_close_matches(plain, words, n=3, cutoff=0.4) or words[:3]
    return f"{what} matches no module; near names: {', '.join(near)}"


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=5)
