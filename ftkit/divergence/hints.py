"""The likely cause of a divergence, from the tensor that differs first and how it differs."""

from .recorder import GRADIENT, OUTPUT, OUTPUT_GRADIENT, PARAMETER
from .recording import Recording

START, TOKENS, SETTINGS = "parameter at the start", "token in the loss", "optimizer setting"

LOSS = {  # by what B is A times
    "one factor": "the loss is scaled: a sum for a mean, or another divisor (tokens, micro-batches, ranks)",
    "a factor for each rank": "each rank divides by a number of its own, such as its tokens in place of those of all",
    "": "all outputs agree, so the loss differs: labels (shifted, masked) or their weights",
}
GRADIENTS = {
    "one factor": "all gradients are scaled: a sum over ranks or micro-batches for a mean, or clipping to another norm",
    "a factor for each rank": "each rank scales by a factor of its own, such as clipping by the norm of its shards",
    "": "gradients of outputs agree, so their sum differs: a missing all-reduce, zero_grad or micro-batch",
}
CAUSES = {
    START: "loaded from other files, drawn from another seed, cast, or not broadcast from rank 0",
    TOKENS: "other examples (a micro-batch left out), loss mask, attention_mask, or restarts of position_ids",
    SETTINGS: "another group, schedule or flag; an optimizer built before sharding has no parameter of the model",
    PARAMETER: "gradients and settings agree, so the update differs: moments (lost on resuming?), mask, algorithm",
}


def hint(first, everywhere: bool, a: Recording, b: Recording) -> str:
    """The likely cause of a Divergence.

    Args:
        first: the first one of a report.
        everywhere: whether all tensors of its kind differ at its step.
    """
    key = first.step, first.kind, first.name
    pattern = "one factor" if first.factor else "a factor for each rank" if first.factors else ""
    if first.kind == OUTPUT_GRADIENT and first.name in a.names(first.step, OUTPUT_GRADIENT)[:2]:
        return LOSS[pattern]
    if first.kind == OUTPUT_GRADIENT:
        return "what follows this output has another backward pass: a scale, detach, a missing all-reduce"
    if first.kind == GRADIENT and first.note:
        return "frozen, detached, or not used in one run"
    if first.kind == GRADIENT:
        return GRADIENTS[pattern if everywhere else ""]
    if first.kind != OUTPUT:
        return CAUSES[first.kind]
    if a.facts[key]["dtype"] != b.facts[key]["dtype"]:
        return f"computed in {a.facts[key]['dtype']} in A and in {b.facts[key]['dtype']} in B"
    if a.facts[key]["training"] != b.facts[key]["training"]:
        return "in training mode in one run only: dropout"
    if first.ranks:
        return "other ranks agree: dropout or a seed of this rank's own, stale weights or buffers"
    if first.factor:
        return "a scale is lost or applied twice, such as lora_alpha / r"
    return "its inputs agree: attention mask, position_ids, epsilon, dropout, a buffer, or an all-reduce of its own"
