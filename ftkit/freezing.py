"""Choose which parameters train: by regular expression, by predicate, or by a preset. All return parameter names.

A tied parameter, such as an input embedding that is also the LM head, is chosen when any of its names is, and returned
under the first; a UserWarning names the others.
"""

import copy
import re
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from ._modules import eval_mode, is_norm, layer_lists, near_names

Which = str | Callable[[str, nn.Parameter], bool]  # a regular expression to search in names, or a predicate


def freeze(model: nn.Module, which: Which) -> list[str]:
    """Freeze the parameters that match `which`; returns the names that changed.

    Raises ValueError, before any change, for a pattern that matches nothing.
    """
    return _set_requires_grad(_choose(model, which), False)


def unfreeze(model: nn.Module, which: Which) -> list[str]:
    """The reverse of `freeze`. Raises ValueError also for quantised weights, because integers have no gradient."""
    return _set_requires_grad(_choose(model, which), True)


def train_only(model: nn.Module, which: Which) -> list[str]:
    """Freeze all parameters but those that match `which`; returns the names that train. Raises as `unfreeze`."""
    chosen = _choose(model, which)
    _set_requires_grad(chosen, True)
    _set_requires_grad({n: p for n, p in model.named_parameters() if n not in chosen}, False)
    return list(chosen)


def everything(model: nn.Module) -> list[str]:
    """Full fine-tuning: all but what the model's own class freezes, such as the sinusoids of Whisper's encoder."""
    fixed = _fixed(model)
    return train_only(model, lambda name, _: name not in fixed)


def bitfit(model: nn.Module) -> list[str]:
    """Biases only (Ben Zaken et al. 2022). Raises ValueError for a model without any, as many since Llama."""
    biases = {name for name, _ in model.named_parameters() if re.search(r"(^|[._])bias$", name)}
    if not biases:
        raise ValueError(f"BitFit trains biases, and {type(model).__name__} has none: norms_only is the nearest preset")
    return _train_named(model, biases, "bias")


def norms_only(model: nn.Module) -> list[str]:
    """Weights and biases of LayerNorm, RMSNorm and related modules."""
    return _train_named(model, _norms(model), "norm")


def embeddings_and_norms(model: nn.Module) -> list[str]:
    """Input embeddings and all norms: what LongLoRA (Chen et al. 2024) trains besides its adapters."""
    return _train_named(model, _embeddings(model) | _norms(model), "embedding or norm")


def freeze_first_layers(model: nn.Module, n: int, inputs: Mapping | None = None) -> list[str]:
    """Freeze the first `n` blocks and what feeds them or block `n`; all others and an untied head train.

    A step is cheaper, because no gradient flows below block `n`. A short forward pass finds what feeds a block:
    embeddings, their norms and projections, a convolutional stem. `inputs` are its arguments; by default four tokens,
    or one image. Raises ValueError where `n` is negative or more than the number of blocks, and where the pass fails.
    """
    name, blocks = _blocks(model)
    if not 0 <= n <= len(blocks):
        raise ValueError(f"n is {n}, and {name} has {len(blocks)} blocks: give 0 to {len(blocks)}")
    feeding = _feeding(model, blocks[min(n, len(blocks) - 1)], inputs) | set(blocks[:n].parameters())
    below = {name for name, parameter in model.named_parameters() if parameter in feeding}
    everything(model)
    freeze(model, lambda name, _: name in below)  # not train_only of the others: a tied head is one of them
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def head_only(model: nn.Module) -> list[str]:
    """Parameters outside the base model: `lm_head`, `score`, `classifier`."""
    return _train_named(model, _outside_base(model), "head")


def add_layers(model: nn.Module, hidden_size: int | None = None) -> list[str]:
    """Freeze the model and train two new linear layers below its head, `HEAD.added`: x + W2 gelu(W1 x).

    `hidden_size` (default: the model's D) is the width of W1's output. W2 starts at zero, so outputs do not change at
    first. A saved model has these weights, but its class does not know them: call this again before loading.
    Raises ValueError for a model without exactly one linear head, and where layers have been added before.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        outside = _outside_base(model)
        heads = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and f"{n}.weight" in outside]
        if len(heads) != 1:
            raise ValueError(f"{type(model).__name__} has {len(heads)} linear heads: this preset needs one")
        (head,) = heads
    if hasattr(head, "added"):
        raise ValueError("the layers have been added before: choose among parameters with train_only")
    like = {"device": head.weight.device, "dtype": head.weight.dtype}
    width, hidden_size = head.in_features, hidden_size or head.in_features
    head.added = nn.Sequential(nn.Linear(width, hidden_size, **like), nn.GELU(), nn.Linear(hidden_size, width, **like))
    nn.init.zeros_(head.added[2].weight)
    nn.init.zeros_(head.added[2].bias)
    # A hook, because a wrapper would change the checkpoint's names and break a tie of the head.
    head.register_forward_pre_hook(_through_added)
    return train_only(model, r"\.added\.")


def _choose(model: nn.Module, which: Which) -> dict[str, nn.Parameter]:
    names_of: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(parameter, []).append(name)
    if isinstance(which, str):
        try:
            pattern = re.compile(which)
        except re.error as error:
            raise ValueError(f"{which!r} is not a regular expression: {error}") from None
    chosen = {}
    for parameter, names in names_of.items():
        hits = [name for name in names if (pattern.search(name) if isinstance(which, str) else which(name, parameter))]
        if hits:
            chosen[names[0]] = parameter
        if 0 < len(hits) < len(names):
            others = ", ".join(name for name in names if name not in hits)
            # Level 3 is the caller of the public function.
            warnings.warn(f"{hits[0]} is tied to {others}: they are one tensor", stacklevel=3)
    if not chosen:
        every = sorted(name for names in names_of.values() for name in names)
        if isinstance(which, str):
            raise ValueError(f"no parameter name matches {which!r}; near names: {near_names(which, every)}")
        raise ValueError(f"the predicate is true of no parameter; names look like {', '.join(every[:3])}")
    return chosen


def _set_requires_grad(chosen: dict[str, nn.Parameter], value: bool) -> list[str]:
    changed = {name: p for name, p in chosen.items() if p.requires_grad != value}
    for name, parameter in changed.items():
        if value and not parameter.is_floating_point():
            raise ValueError(
                f"{name} is stored as {parameter.dtype}, which has no gradient: choose other names, "
                "or load the model without quantisation"
            )
    for parameter in changed.values():
        parameter.requires_grad_(value)
    return list(changed)


def _through_added(head: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    (x,) = inputs  # (B, T, D)
    return (x + head.added(x),)


def _norms(model: nn.Module) -> set[str]:
    return _parameters_of(model, is_norm)


def _parameters_of(model: nn.Module, matches: Callable[[nn.Module], bool]) -> set[str]:
    modules = [(name, module) for name, module in model.named_modules() if matches(module)]
    return {f"{name}.{own}" for name, module in modules for own, _ in module.named_parameters(recurse=False)}


def _embeddings(model: nn.Module) -> set[str]:
    """Embeddings outside the blocks (token, position, segment), and BERT's norm of their sum."""
    inside = f"{_blocks(model)[0]}."
    tables = _parameters_of(model, lambda module: isinstance(module, nn.Embedding))
    summed = {name for name, _ in model.named_parameters() if re.search(r"(^|\.)embeddings\.", name)}
    return {name for name in tables | summed if not name.startswith(inside)}


def _fixed(model: nn.Module) -> set[str]:
    """Names of the parameters that a transformers model's class freezes when it is built: another is built on meta."""
    from transformers import PreTrainedModel  # here, because the functions by name need torch alone

    if not isinstance(model, PreTrainedModel):
        return set()
    with torch.device("meta"):
        new = type(model)(copy.deepcopy(model.config))
    return {name for name, parameter in new.named_parameters() if not parameter.requires_grad}


class _Reached(Exception):
    """Ends a forward pass at the block that was looked for."""


def _feeding(model: nn.Module, block: nn.Module, inputs: Mapping | None) -> set[nn.Parameter]:
    """The parameters that the input of a block depends on, by the autograd graph of a forward pass up to it."""
    arguments: list = []

    def stop(_module, args, kwargs):
        arguments.extend(tree_leaves((args, kwargs)))
        raise _Reached

    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    hook = block.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        for parameter in flags:
            parameter.requires_grad_(parameter.is_floating_point())
        with eval_mode(model), torch.enable_grad():
            model(**(_example(model) if inputs is None else inputs))
        raise ValueError("it never reaches the block")
    except _Reached:
        pass
    except Exception as error:
        raise ValueError(
            f"what feeds the block cannot be found by a forward pass of {type(model).__name__} ({error}): give "
            "`inputs`, the arguments of one, or name what should train with train_only(model, pattern)"
        ) from error
    finally:
        hook.remove()
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
    nodes = [t.grad_fn for t in arguments if isinstance(t, torch.Tensor) and t.grad_fn is not None]
    seen = set(nodes)
    for node in nodes:  # which grows
        new = {below for below, _ in node.next_functions if below is not None} - seen
        seen |= new
        nodes += new
    passed = {t for t in arguments if isinstance(t, nn.Parameter)}
    return passed | {node.variable for node in seen if hasattr(node, "variable")}


def _example(model: nn.Module) -> dict[str, torch.Tensor]:
    """One image for a model of images, else four tokens."""
    like = next(p for p in model.parameters() if p.is_floating_point())
    if getattr(model, "main_input_name", "input_ids") != "pixel_values":
        return {"input_ids": torch.arange(4, device=like.device)[None]}  # (B, T)
    size = getattr(model.config, "image_size", 64)
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(model.config, "num_channels", 3)
    return {"pixel_values": torch.zeros(1, channels, height, width, device=like.device, dtype=like.dtype)}


def _blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    lists = layer_lists(model)
    if len(lists) != 1:
        raise ValueError(
            f"the preset needs one list of blocks, and {type(model).__name__} has {', '.join(lists) or 'none'}: "
            "name what should train with train_only(model, pattern)"
        )
    return next(iter(lists.items()))


def _outside_base(model: nn.Module) -> set[str]:
    prefix = getattr(model, "base_model_prefix", "")
    if not prefix or not hasattr(model, prefix):
        raise ValueError(
            f"{type(model).__name__} is no base model with a head on top: name the head with train_only(model, pattern)"
        )
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return {name for name in names if not name.startswith(f"{prefix}.")}


def _train_named(model: nn.Module, names: set[str], what: str) -> list[str]:
    names = names - _fixed(model)
    if not names:
        raise ValueError(f"{type(model).__name__} has no {what} to train")
    return train_only(model, lambda name, _: name in names)
