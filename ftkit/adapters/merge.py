"""Merge an adapter into its base model, and verify the merged model's logits.

Both are compared in float32, where a correct merge and its adapter agree up to rounding, and a wrong one does not: in
bfloat16 rounding alone can hide a scale that is wrong by a tenth, once it sends a token to another expert.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn
from transformers.integrations.neftune import neftune_post_forward_hook

from ftkit._modules import eval_mode

from .saving import base_tensors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Allowed difference of the logits in float32: this share of what the adapter changes, and units of rounding (2**-24 of
# the largest logit). Correct merges were off by 1 to 15 units, in eleven tiny models and pocket-base; a scale that is
# wrong by a tenth is off by a tenth of the change.
SHARE, ROUNDING = 1e-3, 256 * 2**-24
# In a mixture of experts rounding may send a token to another expert. That changes some positions a lot and others
# hardly, while a wrong merge changes all of them: compare this quantile of the positions there, else their maximum.
ROUTED = 0.25


class MergeError(Exception):
    """The merged model's logits differ from the adapter's by more than rounding."""


@dataclass(frozen=True)
class MergeReport:
    """How far a merged model's logits are off; prints as one line."""

    logit_error: float  # largest difference of the merged model's logits, once rounded, from the adapter's in float32
    change: float  # largest difference between the logits with and without the adapter
    positions: int  # tokens compared, without padding
    flips: int  # positions whose greedy token differs

    def __str__(self) -> str:
        return (
            f"merged: logits differ by {self.logit_error:.2g} at most (the adapter changes them by {self.change:.2g}); "
            f"{self.flips} of {self.positions} greedy tokens differ"
        )


@torch.no_grad()
def merge_and_verify(model: PeftModel, batch: Mapping[str, torch.Tensor]) -> tuple[nn.Module, MergeReport]:
    """Merge a copy of `model` in float32, compare logits on `batch` (input_ids and attention_mask, each (B, T)), and
    round the merged weights to the base's dtypes.

    `model` does not change, so memory must hold a float32 copy beside it.

    Returns:
        The merged model without PEFT's wrapper and without NEFTune's noise, and the report.

    Raises:
        MergeError: logits differ by more than rounding in float32.
        TypeError: the model has no adapter.
        ValueError: the adapter cannot be merged, or the model is in another dtype than DTYPES.
    """
    if not isinstance(model, PeftModel):
        raise TypeError(f"{type(model).__name__} has no adapter to merge: give what attach returned")
    if not hasattr(model.base_model, "merge_and_unload"):
        kind = model.peft_config[model.active_adapter].peft_type.value
        raise ValueError(f"{kind} adds inputs, not weights, and cannot be merged: save it with save_adapter")
    if model.dtype not in DTYPES:
        raise ValueError(f"the model is in {model.dtype}: load it in float32, bfloat16 or float16 to merge")
    batch = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    real = batch["attention_mask"].bool()

    def logits(model: nn.Module) -> torch.Tensor:  # (positions, V)
        return model(**batch, use_cache=False).logits[real]

    with eval_mode(model):
        wide = copy.deepcopy(model)
    for module in wide.modules():
        if not hasattr(module, "_hf_hook"):  # a forward that a trainer replaced may still call the model copied from
            vars(module).pop("forward", None)
    dtypes = {name: tensor.dtype for name, tensor in base_tensors(_tensors(model.get_base_model())).items()}
    for tensor in _tensors(wide).values():
        tensor.data = tensor.data.float()
    adapted = logits(wide)
    with wide.disable_adapter():
        base = logits(wide)
    merged = wide.merge_and_unload(safe_merge=True)
    error, change = (difference.abs().amax(-1) for difference in (logits(merged) - adapted, adapted - base))
    routed = any("expert" in name for name, _ in merged.named_modules())
    share = ROUTED if routed else 1.0
    off, changed = error.quantile(share).item(), change.quantile(share).item()
    if not off <= SHARE * changed + ROUNDING * adapted.abs().max().item():  # NaN is refused too
        raise MergeError(
            f"the merged logits are off by {off:.2g}, and the adapter changes them by {changed:.2g}: do not use the "
            "merged model; keep the adapter (save_adapter) and load it on its base"
        )
    _remove_neftune(merged)
    for name, tensor in _tensors(merged).items():
        tensor.data = tensor.data.to(dtypes[name])
    after = logits(merged)
    flips = int((adapted.argmax(-1) != after.argmax(-1)).sum())
    return merged, MergeReport((after - adapted).abs().max().item(), change.max().item(), int(real.sum()), flips)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Floating parameters and buffers by name, tied ones under each of their names."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor for name, tensor in named if tensor.is_floating_point()}


def _remove_neftune(model: nn.Module) -> None:
    embedding = model.get_input_embeddings()
    for key, hook in list(embedding._forward_hooks.items()):
        if hook is neftune_post_forward_hook:
            del embedding._forward_hooks[key]
