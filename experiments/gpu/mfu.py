"""Model FLOPs utilisation as notebook 11 defines it: the FLOPs that a model needs over those that the device could do.

Recomputed activations are not counted as needed, and attention is counted without its causal half (Chowdhery et al.
2022).
"""

from transformers import PreTrainedConfig

DATA_SHEETS = {  # dense FLOP/s in bfloat16, by the name that the driver gives
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
}


def flops_per_token(config: PreTrainedConfig, in_products: int, length: int) -> int:
    """FLOPs of a training step: 6 per parameter in a matrix product, and attention over `length` tokens."""
    return 6 * in_products + 12 * config.num_hidden_layers * config.hidden_size * length


def parameters_in_products(model) -> int:
    """All parameters but an embedding that is only looked up; a tied one is the head's matrix, too."""
    total = sum(parameter.numel() for parameter in model.parameters())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return total - (0 if tied else model.get_input_embeddings().weight.numel())
