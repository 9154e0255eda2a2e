"""Check that the weights of a loaded model are all there, and numbers."""

import torch
from transformers import PreTrainedModel

from ftkit._modules import first_names
from ftkit.findings import Finding

from .findings import finding


def check_weights(model: PreTrainedModel, info: dict) -> list[Finding]:
    """Check for weights that are missing in the files, NaN or infinite.

    `info` is what `from_pretrained` returns with `output_loading_info=True`.
    """
    found = []
    if missing := sorted(info["missing_keys"]):
        found.append(finding("weights-missing", first_names(missing)))
    if wrong := not_finite(model):
        found.append(finding("weights-not-finite", first_names(wrong)))
    return found


@torch.no_grad()
def not_finite(model: PreTrainedModel) -> list[str]:
    """Names of the parameters that have a NaN or an infinite entry."""
    floating = [(name, p) for name, p in model.named_parameters() if p.is_floating_point() and not p.is_meta]
    # The sum of absolute values is finite only if each is (one pass, without a mask in memory).
    return [name for name, p in floating if not torch.isfinite(p.abs().sum(dtype=torch.float64)).item()]
