"""Bytes that a rank sends in a step, by ring algorithms: of S bytes on n ranks S (n - 1) / n, twice that to all-reduce.

Shapes: B rows, T tokens, D hidden, V vocabulary.
"""

from collections import Counter

from torch import nn

from ftkit.distributed import tensor_parallel
from ftkit.distributed.sharding import decoder_layers
from ftkit.memory.plan import DTYPES, Plan
from ftkit.memory.step import causal_lm, cut_along


def communication(model: nn.Module, plan: Plan) -> dict[str, int]:
    """Bytes sent a step by operation, of a model whose training parts are chosen, whole."""
    replicate, shard, tp = plan.mesh
    sent = Counter()
    layers = [parameter for layer in decoder_layers(model) for parameter in layer.parameters()]
    in_layers = {id(parameter) for parameter in layers}
    split = cut_along(model) if tp > 1 else {}
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
        config = causal_lm(model).config.get_text_config()
        tokens = plan.micro_batch_size * plan.max_length * plan.accumulation
        hidden = tokens * config.hidden_size * DTYPES[plan.compute].itemsize
        # Forward, the output of each linear that is cut by rows; backward, the input's gradient of each cut by columns.
        # Computing a layer again stops before its last output, which nothing needs.
        found = tensor_parallel.layer_styles(causal_lm(model))
        styles = [style for name, style in found.items() if "*." in name and style in ("colwise", "rowwise")]
        passes = len(styles) + (styles.count("rowwise") - 1 if plan.activation_checkpointing else 0)
        ends = 2  # the embedding's output, and the gradient of what the head is given
        reduced = (passes * len(decoder_layers(model)) + ends) * hidden
        sent["all-reduce of activations"] = 2 * reduced * (tp - 1) // tp
        logits = tokens * config.vocab_size * DTYPES[plan.compute].itemsize
        sent["all-gather of logits"] = logits * (tp - 1) // tp
    return {operation: size for operation, size in sent.items() if size}
