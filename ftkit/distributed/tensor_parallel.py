"""Tensor parallelism: the ranks split each matrix and see the same examples (Shoeybi et al., Megatron-LM, 2019).

A **column-parallel** layer gives every rank some of the output features, a **row-parallel** one some of the input
features, and an all-reduce sums the ranks' partial outputs. A column-parallel layer followed by a row-parallel one
needs a single all-reduce in the forward pass; the other order needs one after each row-parallel layer, and an
all-gather of what the column-parallel layer gives. Which layer is which is in the model's own plan (`model.tp_plan`).
"""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from transformers import PretrainedConfig

# By transformers' names.
STYLES = {
    "colwise": lambda: ColwiseParallel(),
    "colwise_gather_output": lambda: ColwiseParallel(output_layouts=Replicate()),
    "rowwise": lambda: RowwiseParallel(),
    "embedding_rowwise": lambda: RowwiseParallel(input_layouts=Replicate()),
    # A norm over each head, (B, T, heads, D): replicated, its gradient summed over the ranks' heads.
    "replicated_with_grad_allreduce": lambda: SequenceParallel(sequence_dim=2, use_local_output=True),
}

# Parts of the names of dropout whose activations every rank holds (the residual stream), or that only classifiers use.
REPLICATED_DROPOUT = ("hidden", "resid", "embd", "embed", "classifier", "summary")


def validate_tp_degree(config: PretrainedConfig, tp: int) -> None:
    """Raise ValueError if heads or intermediate size cannot be divided by `tp`; the message names possible values."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    sizes = {
        "attention heads": heads,
        "key-value heads": getattr(text, "num_key_value_heads", None) or heads,
        "intermediate size": getattr(text, "intermediate_size", None) or tp,
    }
    uneven = [f"{size} ({what})" for what, size in sizes.items() if size % tp]
    if uneven:
        possible = [n for n in range(1, heads + 1) if not any(size % n for size in sizes.values())]
        raise ValueError(
            f"tensor parallelism over {tp} ranks does not divide {', '.join(uneven)} of this model: "
            f"take tp from {possible}, and shard over the other ranks (dp_shard)"
        )


def check_tp_dropout(config: PretrainedConfig) -> None:
    """Raise ValueError for dropout on activations that the ranks split, such as attention's.

    The ranks draw from equal streams, so that dropout of what they all hold is the same; what each holds a part of
    would then get the same mask in every part.
    """
    for name, value in config.get_text_config().to_dict().items():
        split = "drop" in name and not any(part in name for part in REPLICATED_DROPOUT)
        if split and isinstance(value, float) and value > 0:
            raise ValueError(
                f"{name} is {value} in the model's config.json, and tensor parallelism splits what it drops: write 0.0 "
                "there, or use dp_shard instead of tp"
            )


def tp_plan_of(model: nn.Module) -> dict[str, str]:
    """The name of each split module, with `*` for layer numbers -> a key of STYLES.

    Raises ValueError for a model without a plan or with a style that is not in STYLES.
    """
    name = type(model).__name__
    if hasattr(model, "peft_config"):
        raise ValueError("adapters have no tensor-parallel plan: merge them first, or use dp_shard instead of tp")
    if not getattr(model, "tp_plan", None):
        raise ValueError(f"{name} has no tensor-parallel plan (base_model_tp_plan): use dp_shard instead of tp")
    plan = {**model.tp_plan, **_embedding_and_head_plan(model)}
    if unknown := sorted({style for style in plan.values() if style not in STYLES}):
        raise ValueError(f"{name}'s plan has layers of kind {', '.join(unknown)}: use dp_shard instead of tp")
    return plan


def apply_tensor_parallel(model: nn.Module, tp_mesh: DeviceMesh) -> nn.Module:
    """Split the model's matrices over `tp_mesh` in place, by its own plan; every rank gets all logits.

    Call it before `fully_shard`, with the model on meta or with the same weights on all ranks. Raises ValueError as
    `tp_plan_of` and `validate_tp_degree` do.
    """
    plan = tp_plan_of(model)
    validate_tp_degree(model.config, tp_mesh.size())
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    styles: dict[str, ParallelStyle] = {layer: STYLES[style]() for layer, style in plan.items()}
    parallelize_module(model, tp_mesh, styles, src_data_rank=None)  # None: no broadcast
    model.tie_weights()  # parallelize_module gives tied layers a weight each
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains[name])  # parallelize_module does not keep it
    return model


def _embedding_and_head_plan(model: nn.Module) -> dict[str, str]:
    """Split embedding and head along the vocabulary, because both must split a tied weight in the same way."""
    names = {module: name for name, module in model.named_modules()}
    ends = {"embedding_rowwise": model.get_input_embeddings(), "colwise_gather_output": model.get_output_embeddings()}
    return {names[module]: style for style, module in ends.items() if module is not None}
