"""Count the parameters of a model, and divide them into optimizer groups with and without weight decay."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ._modules import first_names, is_norm

# Biases and norm weights, by the ends of their names in GPT-2, Llama, Qwen, Gemma, OPT and ViT. "normal_proj" is no
# norm, and attention in one module has its biases as `in_proj_bias` and `bias_k`.
NORM = r"norm(\d+|_\w+)?|ln_\w+"
STATE_SPACE = r"(^|\.)(A_log|D)$"  # Mamba's decay rates and skip: its authors mark them, transformers does not
NO_DECAY = rf"(^|[._])bias(_\w+)?$|({NORM})\.weight$|{STATE_SPACE}"

Named = Iterable[tuple[str, nn.Parameter]]


@dataclass(frozen=True)
class ParameterCount:
    """Elements of parameters, their bytes, and where they are; prints as one line."""

    total: int
    trainable: int
    bytes: int  # of all parameters, on whatever process
    local: int  # elements that this process holds; less than total when the model is sharded
    on_meta: tuple[str, ...]  # names of parameters that have a shape and no memory yet

    def __str__(self) -> str:
        text = f"{self.total:,} parameters, {self.trainable:,} trainable, {self.bytes / 2**20:.1f} MiB"
        if self.local != self.total:
            text += f", {self.local:,} held here"
        if self.on_meta:
            text += f", {len(self.on_meta)} on meta ({', '.join(self.on_meta[:3])}{' …' * (len(self.on_meta) > 3)})"
        return text


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the parameters of a model, tied ones once."""
    return _count(list(model.named_parameters()))  # which lists a tied tensor once


@dataclass(frozen=True)
class ParameterTable:
    """A count per module, in the model's order; prints as text, and as a table in a notebook."""

    rows: dict[str, ParameterCount]

    def __str__(self) -> str:
        width = max(map(len, self.rows))
        lines = [f"{'module':{width}}  {'parameters':>12}  {'trainable':>12}  {'MiB':>8}"]
        lines += [f"{name:{width}}  {c.total:12,}  {c.trainable:12,}  {c.bytes / 2**20:8.2f}" for name, c in self]
        return "\n".join(lines)

    def __iter__(self) -> Iterator[tuple[str, ParameterCount]]:
        return iter(self.rows.items())

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td style='text-align:left'>{name}</td><td>{c.total:,}</td><td>{c.trainable:,}</td>"
            f"<td>{c.bytes / 2**20:.2f}</td></tr>"
            for name, c in self
        )
        head = "<th style='text-align:left'>module</th><th>parameters</th><th>trainable</th><th>MiB</th>"
        return f"<table><tr>{head}</tr>{cells}</table>"


def parameter_table(model: nn.Module, depth: int = 2) -> ParameterTable:
    """Count parameters by the first `depth` parts of their names; the last row is "total"."""
    groups: dict[str, list] = {}
    for name, parameter in model.named_parameters():
        module = ".".join(name.split(".")[:-1][:depth]) or name
        groups.setdefault(module, []).append((name, parameter))
    rows = {module: _count(named) for module, named in groups.items()}
    return ParameterTable({**rows, "total": count_parameters(model)})


def _count(named: list[tuple[str, nn.Parameter]]) -> ParameterCount:
    parameters = [parameter for _, parameter in named]
    return ParameterCount(
        total=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        bytes=sum(p.numel() * p.element_size() for p in parameters),
        local=sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parameters),
        on_meta=tuple(name for name, p in named if p.is_meta),
    )


def decay_groups(named_parameters: Named, weight_decay: float, no_decay: str = "") -> list[dict]:
    """Two optimizer groups of (name, parameter) pairs: with weight decay, and without.

    Biases, norm weights, Mamba's A_log and D, tensors with fewer than two dimensions, those that a model's authors mark
    with `_no_weight_decay` and names that match the regular expression `no_decay` do not decay. Frozen parameters are
    left out. Raises ValueError where every parameter is frozen.
    """
    pattern = re.compile(f"{NO_DECAY}|{no_decay}" if no_decay else NO_DECAY)

    def exempt(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim < 2 or getattr(parameter, "_no_weight_decay", False) or bool(pattern.search(name))

    return _groups(named_parameters, weight_decay, exempt)


def groups_by_name(named_parameters: Named, weight_decay: float, no_decay: str = NO_DECAY) -> list[dict]:
    """As `decay_groups`, by name alone: names that match `no_decay` do not decay."""
    pattern = re.compile(no_decay)
    return _groups(named_parameters, weight_decay, lambda name, _: bool(pattern.search(name)))


def groups_by_shape(named_parameters: Named, weight_decay: float) -> list[dict]:
    """As `decay_groups`, by shape alone: tensors with fewer than two dimensions do not decay."""
    return _groups(named_parameters, weight_decay, lambda _, parameter: parameter.ndim < 2)


def _groups(named: Named, weight_decay: float, exempt: Callable[[str, nn.Parameter], bool]) -> list[dict]:
    groups: tuple[list, list] = ([], [])
    for name, parameter in named:
        if parameter.requires_grad:
            groups[exempt(name, parameter)].append((name, parameter))
    if not any(groups):
        raise ValueError("no parameter requires a gradient: unfreeze some before making an optimizer")
    decays = ((groups[0], weight_decay), (groups[1], 0.0))
    return [{"params": params, "weight_decay": decay} for params, decay in decays if params]


def norms_and_biases(model: nn.Module) -> Iterator[str]:
    """Names of the parameters of norm modules, and of those whose own name begins or ends with "bias"."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        for own, parameter in module.named_parameters(recurse=False):
            if is_norm(module) or own.startswith("bias") or own.endswith("bias"):
                yield names[id(parameter)]


def check_decay_groups(model: nn.Module, groups: Iterable[dict]) -> None:
    """Check the groups of an optimizer, before or after it is built (`optimizer.param_groups`).

    Raises ValueError, with names, where a trainable parameter is in no group or in several, where a group holds a
    frozen parameter or one that is not the model's, and where a norm weight or a bias decays.
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
    _refuse("is a norm weight or a bias and decays", [n for n in norms_and_biases(model) if n in decaying])


def _refuse(what: str, names: list[str]) -> None:
    if names:
        raise ValueError(f"{first_names(names)} {what}: use ftkit.parameters.decay_groups, or fix the pattern")
