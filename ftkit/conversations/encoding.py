"""Encode conversations as token ids and labels, with the assistant's tokens in the loss."""

import re
from typing import Any

from transformers import PreTrainedTokenizerBase

from ftkit.loss import IGNORE_INDEX

from .errors import ChatTemplateError, ConversationError


def training_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template with {% generation %} markers: its own or TRL's training version.

    Raises ChatTemplateError where there is neither.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise ChatTemplateError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template, so conversations cannot be written as "
            "tokens. Set tokenizer.chat_template and save the tokenizer, or start from a folder that has "
            "chat_template.jinja"
        )
    if re.search(r"\{%-?\s*generation\b", template):
        return template
    from trl.chat_template_utils import get_training_chat_template  # seconds to import, so only where needed

    try:
        return get_training_chat_template(tokenizer)
    except ValueError as error:
        raise ChatTemplateError(
            f"{tokenizer.name_or_path}: its chat template has no {{% generation %}} markers and is not one that TRL "
            "knows, so the assistant's tokens cannot be separated from the user's. Put {% generation %} … "
            "{% endgeneration %} around what the assistant writes, its closing token included"
        ) from error


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    template: str,
    max_length: int | None = None,
) -> dict[str, list[int]]:
    """`input_ids` and `labels` of one conversation, with only the assistant's tokens in the loss.

    Args:
        template: from `training_template`.
        max_length: in tokens; longer conversations are truncated at the end.

    Raises ConversationError when no assistant token remains.
    """
    encoded = tokenizer.apply_chat_template(
        messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    input_ids = encoded["input_ids"][:max_length]
    loss_mask = encoded["assistant_masks"][:max_length]
    # The first token is never predicted.
    labels = [i if m and k else IGNORE_INDEX for k, (i, m) in enumerate(zip(input_ids, loss_mask, strict=True))]
    if all(label == IGNORE_INDEX for label in labels):
        full = len(encoded["input_ids"])
        remedy = (
            f"raise max_length (it has {full} tokens)" if max_length and full > max_length else "check the template"
        )
        raise ConversationError(f"no assistant token is left in {str(messages)[:80]!r}…: {remedy}")
    return {"input_ids": input_ids, "labels": labels}


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int | None = None) -> dict[str, list[int]]:
    """`input_ids` and `labels` of plain text, every token after the first unmasked."""
    input_ids = tokenizer.encode(text)[:max_length]
    return {"input_ids": input_ids, "labels": [IGNORE_INDEX, *input_ids[1:]]}
