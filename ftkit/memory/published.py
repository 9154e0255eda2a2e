"""Sizes of published models, by name: configurations as their authors gave them, so that nothing need be downloaded.

Llama 2: Touvron et al. 2023, table 1 and appendix; Llama 3 and 3.1: Grattafiori et al. 2024, table 3; the widths of
the MLP and the heads of keys and values from the `config.json` that came with the weights.
"""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from ftkit.pocket import CustomCodeError, find_base, load_config

FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
SIZES = {
    "llama-2-7b": (4096, 11008, 32, 32, 32, 32_000),
    "llama-2-13b": (5120, 13824, 40, 40, 40, 32_000),
    "llama-2-70b": (8192, 28672, 80, 64, 8, 32_000),
    "llama-3-8b": (4096, 14336, 32, 32, 8, 128_256),
    "llama-3-70b": (8192, 28672, 80, 64, 8, 128_256),
    "llama-3-405b": (16384, 53248, 126, 128, 8, 128_256),
}


def named_model(name: str = "") -> nn.Module:
    """A model on meta: a name of SIZES, a folder with a config.json (weights are not read), or pocket-base for "".

    Raises ValueError naming what would do, where there is no such model.
    """
    if name in SIZES:
        config = LlamaConfig(
            **dict(zip(FIELDS, SIZES[name], strict=True)),
            tie_word_embeddings=False,
            max_position_embeddings=131_072,
        )
    elif not name:
        config = load_config(find_base())
    elif (Path(name) / "config.json").is_file() or not name.startswith((".", "/", "~")):
        try:
            config = load_config(name)
        except CustomCodeError:
            raise
        except (OSError, ValueError) as error:
            raise ValueError(_unknown(name)) from error
    else:
        raise ValueError(_unknown(name))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)


def _unknown(name: str) -> str:
    return (
        f"no model {name!r}: give a folder with a config.json, a name that transformers finds, "
        f"or one of {', '.join(SIZES)}"
    )
