"""Encode conversations as token ids and labels, with the assistant's tokens in the loss."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ftkit.loss import IGNORE_INDEX

from .errors import ChatTemplateError, ConversationError
from .rendering import MARKERS, ChatTemplate, Messages, TemplateFailed, own_template
from .turns import RenderedText, Span, render_with_loss


class EncodedText(NamedTuple):
    """A text as T tokens."""

    input_ids: list[int]
    loss_mask: list[bool]
    spans: list[Span]  # characters of each token; empty for a tokenizer that does not tell


def training_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template to train with: the tokenizer's own if it has {% generation %} markers, else TRL's training
    version of it, else the tokenizer's own, whose loss mask `encode` derives by rendering.

    Raises ChatTemplateError for a tokenizer without a chat template.
    """
    template = own_template(tokenizer)
    if not template:
        names = ", ".join(tokenizer.chat_template or ())
        has = f"the chat templates {names}, and none is named default" if names else "no chat template"
        raise ChatTemplateError(
            f"{tokenizer.name_or_path}: the tokenizer has {has}, so conversations cannot be written as tokens. Set "
            "tokenizer.chat_template and save the tokenizer, or start from a folder that has chat_template.jinja"
        )
    if MARKERS.search(template):
        return template
    from trl.chat_template_utils import get_training_chat_template  # seconds to import, so only where needed

    try:
        return get_training_chat_template(tokenizer) or template
    except Exception:  # TRL does not know it, or cannot render a conversation with tools with it
        return template


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    template: str,
    max_length: int | None = None,
    *,
    tools: list[dict[str, Any]] | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> dict[str, list[int]]:
    """`input_ids` and `labels` of one conversation, with only the assistant's tokens in the loss.

    Args:
        template: from `training_template`.
        max_length: in tokens; longer conversations are truncated at the end.
        tools, chat_template_kwargs: for the template.

    Raises ConversationError when no assistant token remains, and TemplateFailed when the template refuses it.
    """
    rendered = render_with_loss(ChatTemplate(tokenizer, template), messages, tools, chat_template_kwargs)
    [encoded] = encode_rendered(tokenizer, [rendered])
    example = make_example(encoded, max_length)
    if not has_labels(example):
        why = _why_nothing_is_left(rendered, encoded)
        raise ConversationError(f"no assistant token is left in {str(messages)[:80]!r}…: {why}")
    return example


def make_example(encoded: EncodedText, max_length: int | None = None) -> dict[str, list[int]]:
    """`input_ids` and `labels` of at most `max_length` tokens."""
    input_ids, loss_mask = encoded.input_ids[:max_length], encoded.loss_mask[:max_length]
    # The first token is never predicted.
    labels = [i if m and k else IGNORE_INDEX for k, (i, m) in enumerate(zip(input_ids, loss_mask, strict=True))]
    return {"input_ids": input_ids, "labels": labels}


def has_labels(example: dict[str, list[int]]) -> bool:
    return any(label != IGNORE_INDEX for label in example["labels"])


def _why_nothing_is_left(rendered: RenderedText, encoded: EncodedText) -> str:
    """The reason, or the remedy, for a conversation without a token in the loss."""
    if any(encoded.loss_mask[1:]):
        return f"raise max_length (it has {len(encoded.input_ids)} tokens)"
    problems = (f"message {turn.message + 1} is not in the loss, because {turn.problem}" for turn in rendered.problems)
    return next(problems, "check the template")


def encode_rendered(tokenizer: PreTrainedTokenizerBase, rendered: Sequence[RenderedText]) -> list[EncodedText]:
    """Tokenise rendered conversations in one batch. Raises TemplateFailed where the tokenizer fails."""
    batch = _tokenize(tokenizer, [one.text for one in rendered])
    return [
        EncodedText(ids, _loss_mask(tokenizer, one, ids, spans), spans)
        for one, (ids, spans) in zip(rendered, batch, strict=True)
    ]


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[tuple[list[int], list[Span]]]:
    fast = getattr(tokenizer, "is_fast", False)
    try:
        encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    except Exception as error:  # such as half a surrogate pair
        raise TemplateFailed(f"{type(error).__name__}: {error}") from error
    ids = encoded["input_ids"]
    return list(zip(ids, encoded["offset_mapping"] if fast else [[] for _ in ids], strict=True))


def _loss_mask(tokenizer, rendered: RenderedText, ids: list[int], spans: list[Span]) -> list[bool]:
    mask = [False] * len(ids)
    exact = _cover(spans, len(rendered.text))
    for start, end in rendered.loss_spans:
        first, last = (_position(tokenizer, rendered.text, at, ids, spans, exact) for at in (start, end))
        mask[first:last] = [True] * (last - first)
    return mask


def _position(tokenizer, text: str, at: int, ids: list[int], spans: list[Span], exact: bool) -> int:
    """The first token that has a character at or behind `at`: a token across it belongs to what comes after."""
    if at >= len(text):
        return len(ids)
    if exact:
        return bisect_right(spans, at, key=lambda span: span[1])
    # Spans that leave out white space, or none: compare with the tokens of the text before.
    [(before, _)] = _tokenize(tokenizer, [text[:at]])
    return next((i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), min(len(before), len(ids)))


def _cover(spans: Iterable[Span], length: int) -> bool:
    """Whether spans leave out no character."""
    reached = 0
    for start, end in spans:
        if start > reached:
            return False
        reached = max(reached, end)
    return reached == length


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int | None = None) -> dict[str, list[int]]:
    """`input_ids` and `labels` of plain text, every token after the first unmasked."""
    input_ids = tokenizer.encode(text)[:max_length]
    return {"input_ids": input_ids, "labels": [IGNORE_INDEX, *input_ids[1:]]}
