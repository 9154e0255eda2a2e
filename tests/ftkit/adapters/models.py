"""Four tiny models of other designs than pocket-base's: biased Llama, Mistral, tied Qwen3, Gemma 3; and a batch."""

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen3Config

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
