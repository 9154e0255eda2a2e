"""Which parameters decay: AdamW's weight decay is for matrices, not for norm gains and biases.

Two ways to tell them apart, by name and by shape, and a check that asks neither: it looks at the modules.
"""

import re
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

# Norm gains and biases, by the ends of their names in GPT-2, Llama, Qwen, Gemma, OPT and ViT. "normal_proj" is no norm,
# and attention in one module has its biases as `in_proj_bias` and `bias_k`.
NO_DECAY = r"(^|[._])bias(_\w+)?$|(norm(\d+|_\w+)?|ln_\w+)\.weight$"

Named = Iterable[tuple[str, nn.Parameter]]


def decay_groups(named_parameters: Named, weight_decay: float, no_decay: str = "") -> list[dict]:
    """Two optimizer groups of (name, parameter) pairs: those that decay and those that do not.

    Biases, norm gains and every tensor with fewer than two dimensions do not decay, nor does a name in which
    the regular expression `no_decay` is found. Frozen parameters are left out. Raises ValueError when nothing
    is left to train.
    """
    pattern = re.compile(f"{NO_DECAY}|{no_decay}" if no_decay else NO_DECAY)
    return _groups(named_parameters, weight_decay, lambda name, p: p.ndim < 2 or bool(pattern.search(name)))


def groups_by_name(named_parameters: Named, weight_decay: float, no_decay: str = NO_DECAY) -> list[dict]:
    """As `decay_groups`, by the name alone: what the pattern is found in does not decay."""
    pattern = re.compile(no_decay)
    return _groups(named_parameters, weight_decay, lambda name, _: bool(pattern.search(name)))


def groups_by_shape(named_parameters: Named, weight_decay: float) -> list[dict]:
    """As `decay_groups`, by the shape alone: tensors with fewer than two dimensions do not decay."""
    return _groups(named_parameters, weight_decay, lambda _, parameter: parameter.ndim < 2)


def _groups(named: Named, weight_decay: float, spared: Callable[[str, nn.Parameter], bool]) -> list[dict]:
    groups: tuple[list, list] = ([], [])
    for name, parameter in named:
        if parameter.requires_grad:
            groups[spared(name, parameter)].append((name, parameter))
    if not any(groups):
        raise ValueError("no parameter requires a gradient: unfreeze some before making an optimizer")
    decays = ((groups[0], weight_decay), (groups[1], 0.0))
    return [{"params": params, "weight_decay": decay} for params, decay in decays if params]


def gains_and_biases(model: nn.Module) -> Iterator[str]:
    """Names of the parameters that are gains or biases by their module, whatever they are called or shaped.

    A gain is a parameter of a module whose class has "norm" in its name, as LayerNorm and LlamaRMSNorm have; a bias is
    one whose own name begins or ends with "bias".
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        is_norm = "norm" in type(module).__name__.lower()
        for own, parameter in module.named_parameters(recurse=False):
            if is_norm or own.startswith("bias") or own.endswith("bias"):
                yield names[id(parameter)]


def check_decay_groups(model: nn.Module, groups: Iterable[dict]) -> None:
    """Check the groups that an optimizer is to be given, or has (`optimizer.param_groups`).

    Raises ValueError, with names, where a trainable parameter of the model is in no group or in several, where a
    group holds one that is not the model's or is frozen, and where a norm gain or a bias decays.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    count: dict[int, int] = dict.fromkeys(names, 0)
    decaying = set()
    for group in groups:
        params = group["params"]
        for entry in [params] if isinstance(params, torch.Tensor) else params:
            parameter = entry[1] if isinstance(entry, tuple) else entry
            if id(parameter) not in names:
                raise ValueError(
                    f"a group holds a parameter of shape {tuple(parameter.shape)} that is not the model's: make "
                    "the groups from this model, after everything that replaces parameters"
                )
            count[id(parameter)] += 1
            if group.get("weight_decay"):
                decaying.add(names[id(parameter)])
    frozen = {id(parameter) for parameter in model.parameters() if not parameter.requires_grad}
    _refuse("trains and is in no group", [names[i] for i, n in count.items() if n == 0 and i not in frozen])
    _refuse("is in several groups", [names[i] for i, n in count.items() if n > 1])
    _refuse("is frozen and in a group", [names[i] for i, n in count.items() if n and i in frozen])
    _refuse("is a norm gain or a bias and decays", [n for n in gains_and_biases(model) if n in decaying])


def _refuse(what: str, names: list[str]) -> None:
    if names:
        more = f" (and {len(names) - 3} more)" if len(names) > 3 else ""
        raise ValueError(
            f"{', '.join(names[:3])}{more} {what}: use ftkit.optim.decay_groups, or mend the pattern"
        )
