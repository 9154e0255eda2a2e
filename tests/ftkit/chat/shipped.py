"""TRL's chat templates, each with a tokenizer made for it: the special tokens that it writes, and bytes."""

import re
from pathlib import Path

import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

FOLDER = Path(trl.__file__).parent / "chat_templates"
# The ways in which these templates write special tokens.
SPECIAL = re.compile(
    r"<\|[^|<>\s']+\|>|<｜[^｜]+｜>|<(?:start|end)_of_\w+>|<turn\|>|<\|turn>|<\|[a-z_]+>|<[a-z_]+\|>|\[gMASK\]|<sop>|<image>"
)


def names() -> list[str]:
    return sorted(path.name for path in FOLDER.glob("*.jinja"))


def text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def tokenizer_for(name: str, bos_token: str | None, eos_token: str) -> PreTrainedTokenizerFast:
    template = text(name)
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(bytes_)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(sorted({*SPECIAL.findall(template), eos_token, *filter(None, [bos_token])}))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=bos_token, eos_token=eos_token, chat_template=template
    )
