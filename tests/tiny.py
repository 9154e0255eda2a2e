"""Tiny models and tokenizers that tests make for themselves: foreign to pocket-base in every way that matters."""

from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

# In the manner of Qwen: ChatML, no generation markers of its own, thinking block not shown.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "the",
    "dog",
    "ran",
    "far",
    "away",
    "over",
    "nine",
    "green",
    "hills",
    "while",
    "12",
    "owls",
    "hooted",
    "twice",
]


@cache
def foreign_tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([" ".join(WORDS)] * 5, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )


def foreign_model(dtype: torch.dtype = torch.bfloat16, seed: int = 0, layers: int = 3) -> Qwen3ForCausalLM:
    """Tied embeddings, grouped queries, no biases, more embedding rows than tokens."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(foreign_tokenizer()) + 13,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=foreign_tokenizer().eos_token_id,
    )
    return Qwen3ForCausalLM(config).to(dtype)


def save_foreign(folder: Path, layers: int = 3) -> Path:
    foreign_model(layers=layers).save_pretrained(folder)
    foreign_tokenizer().save_pretrained(folder)
    return folder


def ragged_conversations(count: int = 11) -> list[dict]:
    """Conversations of very different lengths, one with a system turn, one with three turns."""
    rows = []
    for i in range(count):
        question, answer = " ".join(WORDS[: 1 + i]), " ".join(WORDS[i : i + 1 + (i * 7) % 9])
        rows.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    rows[0]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    rows[1]["messages"] += rows[2]["messages"]
    return rows
