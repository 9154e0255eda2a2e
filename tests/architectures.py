"""Tiny models of other architectures than that of tests.tiny, each with a trait that ftkit must handle."""

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconH1Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPTNeoXConfig,
    MambaConfig,
    MixtralConfig,
    PreTrainedConfig,
)

from tests.tiny import foreign_tokenizer

VOCABULARY = len(foreign_tokenizer())
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def config_of(name: str, **changes) -> PreTrainedConfig:
    grouped = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
    mamba = {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_chunk_size": 8}
    eye = SIZES | {"num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    image = {"image_token_index": VOCABULARY - 1, "boi_token_index": VOCABULARY - 2, "eoi_token_index": VOCABULARY - 3}
    text = grouped | {"vocab_size": VOCABULARY, "query_pre_attn_scalar": 8, "sliding_window": 16}
    kinds = {
        "bloom": (BloomConfig, {"hidden_size": 16, "n_layer": 2, "n_head": 2}),  # no sdpa
        "falcon": (FalconH1Config, grouped | mamba | {"mamba_n_groups": 1}),  # a module sets the buffers of others
        "gemma": (Gemma3Config, {"text_config": text, "vision_config": eye, "mm_tokens_per_image": 1} | image),
        "mamba": (MambaConfig, {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2}),  # no position ids
        "mixtral": (MixtralConfig, grouped | {"num_local_experts": 4}),  # converted on loading
        "neox": (GPTNeoXConfig, SIZES | {"hidden_dropout": 0.3}),
    }
    kind, values = kinds[name]
    return kind(**{"vocab_size": VOCABULARY} | values | changes)


def build(name: str, **changes) -> torch.nn.Module:
    torch.manual_seed(0)
    config = config_of(name, **changes)
    if name == "gemma":
        return Gemma3ForConditionalGeneration(config)
    return AutoModelForCausalLM.from_config(config)


def save(name: str, folder: Path, **changes) -> Path:
    build(name, **changes).save_pretrained(folder)
    foreign_tokenizer().save_pretrained(folder)
    return folder
