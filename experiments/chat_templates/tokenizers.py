"""A small byte-level tokenizer for any chat template, with the special tokens that the template writes."""

import re

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

NAME = r"[^\s|<>'\"{}\[\]\\｜]{1,40}"
# Angle brackets alone are not enough: templates write tags that are ordinary text.
TAGS = r"turn|channel|think|tool|tool_call|tool_response|image|audio|video"
SPECIAL = re.compile(
    "|".join(
        (
            rf"<\|{NAME}\|>|<｜{NAME}｜>|<\|\"\|>",
            rf"<\|(?:{TAGS})>|<(?:{TAGS})\|>",  # Gemma 4 opens, and closes
            r"<(?:start|end)_of_(?:turn|utterance|image|function_call|function_response|function_declaration)>",
            r"<(?:start|end)_function_\w+>|<start_(?:user|system|assistant)>|<end_message>",
            r"<(?:unk|bos|eos|sop|eop|sep|pad|image|escape|step)>|</?s>",
            r"</?(?:think|tool_call|tool_response|tool_calls|answer)>",
            r"\[/?(?:INST|AVAILABLE_TOOLS|TOOL_RESULTS|SYSTEM_PROMPT|MODEL_SETTINGS|THINK)\]",
            r"\[(?:TOOL_CALLS|ARGS|TOOL_CONTENT|CALL_ID|IMG|BOS|SEP|gMASK|EOS)\]",
            r"\[\|[a-z]+\|\]",  # EXAONE
            r"\]~b\]|\[e~\[|\]~!b\[|\]<\]minimax\[>\[",  # MiniMax
            r"<seed:[a-z_]+>|<extra_id_\d+>|<SPECIAL_\d+>|<\[[a-z_]+\]>|<[A-Z]+_TOKEN>",
        )
    )
)
JOINED = re.compile(r"<\|(?:['\"]\s*[+~]|\{\{)")  # '<|' + role + '|>'


def special_tokens(template: str) -> list[str]:
    """The special tokens that a template writes, in order of appearance; those of the roles where it joins them."""
    found = SPECIAL.findall(template)
    if JOINED.search(template):
        found += [f"<|{role}|>" for role in ("system", "user", "assistant")]
    return list(dict.fromkeys(found))


def tokenizer_for(template: str, bos: str | None, eos: str) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes and special tokens, with this chat template.

    Args:
        bos, eos: of the model's own tokenizer.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    names = dict.fromkeys([*([bos] if bos else []), eos, *special_tokens(template)])
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=bos, eos_token=eos, pad_token=eos, chat_template=template
    )
