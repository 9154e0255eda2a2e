"""Check that causal and padding mask work together, by comparing logits of the model.

Shapes: T tokens, V vocabulary.
"""

import inspect

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftkit._modules import eval_mode
from ftkit.findings import Finding

from .dataset import max_positions
from .findings import finding

N_TOKENS, N_PADS = 12, 5
# Accepted change of a logit, in units of the largest one: padding changes shapes, and so the order of additions.
# A mask that leaks changes them by tenths. bfloat16 keeps 8 bits of each of some hundred rounded operations.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def check_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    """Check that neither padding nor a later token changes the logits of a short random sequence, shorter yet in a
    model with few positions.

    Position ids count from the first real token, as in `generate`. The model's mode is restored.
    """
    limit = max_positions(model.config) or N_TOKENS + N_PADS
    n_pads = max(1, min(N_PADS, limit // 3))
    n_tokens = max(1, min(N_TOKENS, limit - n_pads))
    usable = min(len(tokenizer), model.get_input_embeddings().weight.shape[0])
    pad = tokenizer.pad_token_id if (tokenizer.pad_token_id or usable) < usable else 0
    ordinary = [i for i in range(usable) if i not in set(tokenizer.all_special_ids)] or list(range(usable))
    generator = torch.Generator().manual_seed(0)
    row = torch.tensor(ordinary)[torch.randint(len(ordinary), (1, n_tokens), generator=generator)]  # (1, T)
    pads = torch.full((1, n_pads), pad)
    real, unreal = torch.ones_like(row), torch.zeros_like(pads)
    with eval_mode(model):
        unpadded = _logits(model, row, real)
        right = _logits(model, torch.cat([row, pads], 1), torch.cat([real, unreal], 1))[:n_tokens]
        left = _logits(model, torch.cat([pads, row], 1), torch.cat([unreal, real], 1))[n_pads:]
        other = row.clone()
        other[0, -1] = next(i for i in ordinary if i != row[0, -1])
        changed = _logits(model, torch.cat([other, pads], 1), torch.cat([real, unreal], 1))[: n_tokens - 1]
    scale = unpadded.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    allowed = TOLERANCE.get(model.dtype, TOLERANCE[torch.bfloat16])
    found = []
    for side, logits in (("right", right), ("left", left)):
        if not (change := ((logits - unpadded).abs().max() / scale).item()) <= allowed:  # NaN is a finding too
            observed = f"{n_pads} pads on the {side} change a logit by {change:.2g} of the largest"
            found.append(finding("padding-changes-logits", observed))
    if not (change := ((changed - unpadded[:-1]).abs().max() / scale).item()) <= allowed:
        observed = f"another last token changes a logit before it by {change:.2g} of the largest"
        found.append(finding("future-changes-logits", observed))
    return found


@torch.no_grad()
def _logits(model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """(T, V) in float32, on the CPU."""
    given = {"input_ids": input_ids, "attention_mask": attention_mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        given["position_ids"] = (attention_mask.cumsum(1) - 1).clamp_min(0)
    on_device = {name: value.to(model.device) for name, value in given.items()}
    return model(**on_device).logits[0].float().cpu()
