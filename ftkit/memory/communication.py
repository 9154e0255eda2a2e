"""Bytes that a rank sends in a step, by ring algorithms: of S bytes on n ranks S (n - 1) / n, twice that to all-reduce.

Shapes: B rows, T tokens, D hidden.
"""

from collections import Counter

from torch import nn

from ftkit.distributed.sharding import decoder_layers
from ftkit.memory.plan import DTYPES, Plan
from ftkit.memory.step import causal_lm, parallel_styles


def communication(model: nn.Module, plan: Plan) -> dict[str, int]:
    """Bytes sent a step by operation, of a model whose training parts are chosen, whole."""
    replicate, shard, tp = plan.mesh
    sent = Counter()
    layers = [parameter for layer in decoder_layers(model) for parameter in layer.parameters()]
    in_layers = {id(parameter) for parameter in layers}
    split = _split_by_tp(model) if tp > 1 else set()
    for parameter in model.parameters():
        size = parameter.numel() // (tp if id(parameter) in split else 1)
        trains = parameter.requires_grad
        if plan.sharded:
            again = id(parameter) in in_layers and plan.reshard_after_forward  # the root stays gathered
            gathers = plan.accumulation * (2 if again else 1)
            sent["all-gather of weights"] += (
                gathers * size * DTYPES[plan.compute].itemsize * (shard - 1) // shard
            )
        if trains and plan.sharded:
            sent["reduce-scatter of gradients"] += 4 * size * (shard - 1) // shard
            sent["all-reduce of gradients"] += 2 * 4 * size // shard * (replicate - 1) // replicate
        elif trains and plan.ddp:
            reduced = size * parameter.element_size() * plan.accumulation
            sent["all-reduce of gradients"] += 2 * reduced * (replicate - 1) // replicate
    if tp > 1:
        hidden = causal_lm(model).config.get_text_config().hidden_size
        tokens = plan.micro_batch_size * plan.max_length * plan.accumulation
        # Forward, the output of each linear that is cut by rows; backward, the input's gradient of each cut by columns.
        # Computing a layer again stops before its last output, which nothing needs.
        styles = list(parallel_styles(model).values())
        passes = len(styles) + (styles.count("rowwise") - 1 if plan.activation_checkpointing else 0)
        size = tokens * hidden * DTYPES[plan.compute].itemsize * len(decoder_layers(model))
        sent["all-reduce of activations"] = passes * 2 * size * (tp - 1) // tp
    return {operation: size for operation, size in sent.items() if size}


def _split_by_tp(model: nn.Module) -> set[int]:
    return {
        id(layer.get_submodule(name).weight)
        for layer in decoder_layers(model)
        for name in parallel_styles(model)
    }
