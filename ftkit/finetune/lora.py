"""LoRA on ranks: flags, adapters that begin the same however many ranks hold them, and an export that carries them.

The base is frozen, so it is kept in the dtype that it is computed in; what trains is in float32.
"""

import re
import zlib
from collections.abc import Mapping

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftkit.adapters import attach
from ftkit.adapters.lora import embeddings_among, target_modules_of, tied_modules
from ftkit.dtensor import shard_like
from ftkit.models import load_tokenizer, resolve_model

NAMES = re.compile(r"[\w.-]+(,[\w.-]+)*")  # of modules; anything else is a regular expression
OFF = {  # LoRA's flags, and the value that leaves each out
    "lora_dropout": 0.0,
    "use_dora": False,
    "use_rslora": False,
    "loraplus_lr_ratio": 1.0,
    "modules_to_save": "",
    "trainable_token_indices": "",
}


def validate_lora_flags(config) -> None:
    """Raise ValueError, naming the flag of a `Config`, for LoRA's flags without LoRA."""
    if config.method != "lora" and (given := [name for name, off in OFF.items() if getattr(config, name) != off]):
        raise ValueError(f"--{given[0]} is LoRA's: give --method lora, or leave it")


def lora_options(config) -> dict:
    """The arguments of `attach(model, "lora")` that the flags of a `Config` give. Raises ValueError for a token."""
    target = config.target_modules
    tokens = _words(config.trainable_token_indices)
    tokenizer = load_tokenizer(resolve_model(config.model)) if tokens else None
    return {
        "r": config.lora_r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "target_modules": target.split(",") if NAMES.fullmatch(target) and target != "all-linear" else target,
        "modules_to_save": _words(config.modules_to_save) or None,
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
        "trainable_token_indices": sorted({_token_id(token, tokenizer) for token in tokens}) or None,
    }


def validate_lora(model: PreTrainedModel, ranks: int, options: Mapping) -> None:
    """Attach LoRA to `model`, which may be on meta. Raises ValueError for what does not fit it or so many ranks."""
    rows, saved = options["trainable_token_indices"], options["modules_to_save"] or []
    if ranks > 1 and tied_modules(model) and (rows or embeddings_among(model, saved)):
        given = "--trainable_token_indices" if rows else "--modules_to_save"
        raise ValueError(
            f"{given} trains an embedding that is tied to the LM head, which does not run on {ranks} ranks: start one "
            "process, or leave it"
        )
    attach_lora(model, **options)


def attach_lora(model: PreTrainedModel, compute_dtype: torch.dtype | None = None, **options) -> PeftModel:
    """LoRA on `model`, which may be on meta: what trains in float32, the base in `compute_dtype` (None: as it is).

    Buffers keep their dtype, because rotary frequencies in bfloat16 would misplace tokens. Raises ValueError as
    `attach` does, and for a tied matrix, whose merge would change its other use.
    """
    if tied := target_modules_of(model, options["target_modules"]).keys() & set(tied_modules(model)):
        raise ValueError(
            f"--target_modules takes {min(tied)}, and embedding and LM head are tied, so that merging it would change "
            "both: name other modules, or train it fully with --modules_to_save"
        )
    attached = attach(model, "lora", **options)
    for parameter in attached.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
        elif compute_dtype is not None:
            parameter.data = parameter.data.to(compute_dtype)
    return attached


@torch.no_grad()
def reset_adapters(model: nn.Module, seed: int) -> None:
    """PEFT's start: random factors drawn from seed and name, magnitudes and rows of tokens computed from the base.

    So every rank draws the whole of a matrix and keeps its shard of it, and one process starts as many do. Of a linear
    layer A is uniform within 1/sqrt(columns) and B zero, of an embedding B is normal and A zero. A collective.
    """
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(name.encode()))
        if "lora_B." in name or "lora_embedding_A." in name:
            _set(parameter, torch.zeros(parameter.shape))
        elif "lora_A." in name:
            uniform = 2 * torch.rand(parameter.shape, generator=generator) - 1
            _set(parameter, uniform / parameter.shape[1] ** 0.5)
        elif "lora_embedding_B." in name:
            _set(parameter, torch.randn(parameter.shape, generator=generator))
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for layer in module.lora_magnitude_vector.values():
                weight = _unsharded(module.get_base_layer().weight)
                if weight.is_floating_point():  # of a quantised base PEFT has computed them already
                    _set(
                        layer.weight, layer.get_weight_norm(weight.float(), torch.zeros((), device=weight.device), 0.0)
                    )
        elif isinstance(module, TrainableTokensLayer) and not module.tied_adapter:
            for adapter, rows in module.token_indices.items():
                weight = _unsharded(module.get_base_layer().weight)[rows]
                _set(module.trainable_tokens_delta[adapter], weight)
                module.trainable_tokens_original[adapter].copy_(weight)


def attach_trained_adapters(base: PreTrainedModel, trained: Mapping[str, torch.Tensor], **options) -> PeftModel:
    """The unsharded base with what was `trained` on it. Raises RuntimeError where names do not fit."""
    attached = attach_lora(base, **options)
    wanted = {name for name, parameter in attached.named_parameters() if parameter.requires_grad}
    known = {name for name, _ in attached.named_parameters(remove_duplicate=False)}  # a tied one under both names
    if odd := (wanted - trained.keys()) | (trained.keys() - known):
        raise RuntimeError(f"adapters and model differ in {sorted(odd)[:3]}")
    attached.load_state_dict(trained, strict=False)
    return attached


def _set(parameter: torch.Tensor, whole: torch.Tensor) -> None:
    parameter.copy_(shard_like(whole.to(parameter.dtype), parameter))


def _unsharded(weight: torch.Tensor) -> torch.Tensor:
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _token_id(token: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """A number is an id; any other text has to be one token."""
    if token.isdecimal():
        return int(token)
    ids = tokenizer.encode(token, add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(
            f"--trainable_token_indices: {token!r} is {len(ids)} tokens of the model's tokenizer: give tokens of its "
            "vocabulary, or ids"
        )
    return ids[0]
