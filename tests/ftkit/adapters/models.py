"""Four tiny models of other designs than pocket-base's: biased Llama, Mistral, tied Qwen3, Gemma 3; and a batch."""

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3TextConfig,
    GptOssConfig,
    GraniteMoeHybridConfig,
    JambaConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

COMMON = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "llama": lambda: LlamaConfig(**COMMON, attention_bias=True, tie_word_embeddings=False),
    "mistral": lambda: MistralConfig(**COMMON, tie_word_embeddings=False),
    "qwen3": lambda: Qwen3Config(**COMMON, head_dim=8, tie_word_embeddings=True),
    "gemma3": lambda: Gemma3TextConfig(**COMMON, head_dim=8, sliding_window=16),
}

EXPERTS = COMMON | {"num_experts_per_tok": 2}
MOE_CONFIGS = {  # mixtures of experts, two of them with Mamba layers
    "mixtral": lambda: MixtralConfig(**EXPERTS, num_local_experts=4),
    "qwen3moe": lambda: Qwen3MoeConfig(**EXPERTS, num_experts=4, moe_intermediate_size=32, head_dim=8),
    "qwen2moe": lambda: Qwen2MoeConfig(
        **EXPERTS, num_experts=4, moe_intermediate_size=32, shared_expert_intermediate_size=32
    ),
    "gptoss": lambda: GptOssConfig(
        **EXPERTS, num_local_experts=4, head_dim=8, sliding_window=16,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "deepseek": lambda: DeepseekV3Config(
        **EXPERTS | {"num_key_value_heads": 4}, n_routed_experts=4, moe_intermediate_size=32, n_group=2, topk_group=1,
        first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        n_shared_experts=1,
    ),
    "granite": lambda: GraniteMoeHybridConfig(
        **EXPERTS, num_local_experts=4, shared_intermediate_size=32, layer_types=["mamba", "attention", "mamba"],
        mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_chunk_size=16,
    ),
    "jamba": lambda: JambaConfig(
        **EXPERTS, num_experts=4, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, mamba_d_state=8, use_mamba_kernels=False,
    ),
}  # fmt: skip


def moe(kind: str, dtype: torch.dtype = torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(MOE_CONFIGS[kind]()).to(dtype)


def model(kind: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(CONFIGS[kind]()).to(dtype)


def batch(rows: int = 4) -> dict[str, torch.Tensor]:
    """Ragged rows, padded on the right."""
    torch.manual_seed(1)
    ids = torch.randint(3, 64, (rows, 12))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def train(tuned, optimizer, steps: int = 5) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = tuned(**batch(), labels=batch()["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
