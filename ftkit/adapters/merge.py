"""Merge an adapter into its base model, and verify the merged model's logits.

Rounding alone changes logits. The tolerance is a multiple of the unmerged model's own rounding error, measured against
the same model in the next higher precision.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import nn

from ftkit._modules import eval_mode

HIGHER = {torch.float32: torch.float64, torch.bfloat16: torch.float32, torch.float16: torch.float32}
# Multiple of the unmerged model's rounding error that is allowed. On four tiny architectures with four seeds each,
# correct merges had 0.7 to 2.0; a scale wrong by a tenth had 10 and more in bfloat16, 260,000 in float32.
ALLOWED = 4.0


class MergeError(Exception):
    """The merged model's logits differ from the adapter's by more than rounding."""


@dataclass(frozen=True)
class MergeReport:
    """How far a merged model's logits are off; prints as one line."""

    logit_error: float  # largest difference between merged and unmerged logits, in the working precision
    rounding: float  # largest error of the unmerged logits, against the higher precision
    positions: int  # tokens compared, without padding
    flips: int  # positions whose greedy token changed, each with a margin below `logit_error`

    def __str__(self) -> str:
        return (
            f"merged: logits differ by {self.logit_error:.2g} at most (rounding alone: {self.rounding:.2g}); "
            f"{self.flips} of {self.positions} greedy tokens differ, none with a margin above that"
        )


@torch.no_grad()
def merge_and_verify(model: PeftModel, batch: Mapping[str, torch.Tensor]) -> tuple[nn.Module, MergeReport]:
    """Merge a copy of `model`, and compare its logits on `batch` (input_ids and attention_mask, each (B, T)).

    `model` does not change, so memory must hold it twice.

    Returns:
        The merged model without PEFT's wrapper, and the report.

    Raises:
        MergeError: logits differ by more than rounding, or a greedy token changes although its margin over the second
            is larger than the difference.
        TypeError: the model has no adapter.
        ValueError: the adapter cannot be merged, or the model's dtype has no higher precision.
    """
    if not isinstance(model, PeftModel):
        raise TypeError(f"{type(model).__name__} has no adapter to merge: give what attach returned")
    if not hasattr(model.base_model, "merge_and_unload"):
        kind = model.peft_config[model.active_adapter].peft_type.value
        raise ValueError(f"{kind} adds inputs, not weights, and cannot be merged: save it with save_adapter")
    if model.dtype not in HIGHER:
        raise ValueError(f"the model is in {model.dtype}: load it in float32, bfloat16 or float16 to merge")
    batch = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
    real = batch["attention_mask"].bool()
    with eval_mode(model):
        before = model(**batch).logits[real]
        with _in_higher_precision(model):
            reference = model(**batch).logits[real].double()
        merged = copy.deepcopy(model).merge_and_unload(safe_merge=True)
        after = merged(**batch).logits[real]
    rounding = (before.double() - reference).abs().max().item()
    beyond = (after.double() - reference).abs().max().item()
    if not beyond <= ALLOWED * rounding:  # NaN is refused too
        raise MergeError(
            f"the merged logits are off by {beyond:.2g}, and rounding in {before.dtype} explains {rounding:.2g}: "
            "do not use the merged model; merge in float32 (model.float()) and compare again"
        )
    error = (after.double() - before.double()).abs().max().item()
    top = before.double().topk(2).values
    differ = before.argmax(-1) != after.argmax(-1)
    if sure := int((differ & (top[:, 0] - top[:, 1] > error)).sum()):
        raise MergeError(f"{sure} greedy tokens changed, although the logits differ by {error:.2g} at most")
    return merged, MergeReport(error, rounding, int(real.sum()), int(differ.sum()))


@contextmanager
def _in_higher_precision(model: nn.Module) -> Iterator[None]:
    """Cast every floating tensor to the next higher precision, and back when the block exits."""
    tensors = [t for t in itertools.chain(model.parameters(), model.buffers()) if t.is_floating_point()]
    dtypes = [t.dtype for t in tensors]
    higher = HIGHER[model.dtype]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.to(higher)
        yield
    finally:
        for tensor, dtype in zip(tensors, dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)
