"""A chat template at work: text, tokens, and which of them are in the loss.

Shapes: T tokens.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftkit.conversations import ChatTemplateError, training_template

from .findings import Finding, finding

Messages = list[dict[str, Any]]
MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers and TRL look for them


class TemplateFailed(ValueError):
    """A chat template, or the tokenizer under it, that raised; the message is its own."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text and as T tokens."""

    text: str
    input_ids: list[int]
    loss_mask: list[bool]  # True where the template says that the assistant writes
    marked: bool  # False for a template without generation markers, whose loss mask is all False
    spans: list[tuple[int, int]]  # the characters of `text` that each token stands for

    @cached_property
    def learnt_text(self) -> str:
        """The characters that the loss mask lets through."""
        chars = {k for span, kept in zip(self.spans, self.loss_mask, strict=True) if kept for k in range(*span)}
        return "".join(self.text[k] for k in sorted(chars))


@dataclass(frozen=True)
class Renderer:
    tokenizer: PreTrainedTokenizerBase
    template: str
    blocks: bool = False  # give content as a list of blocks, as templates of vision models want it

    def text(self, messages: Messages, **kwargs) -> str:
        """The conversation as text. Raises TemplateFailed for whatever the template raises."""
        return self._apply(messages, tokenize=False, **kwargs)

    def tokens(self, messages: Messages, **kwargs) -> list[int]:
        return self._apply(messages, return_dict=False, **kwargs)

    def rendered(self, messages: Messages) -> Rendered:
        """Raises TemplateFailed, also for a tokenizer that cannot say which characters a token stands for."""
        marked = MARKERS.search(self.template) is not None
        encoded = self._apply(
            messages,
            return_dict=True,
            return_assistant_tokens_mask=marked,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        input_ids = encoded["input_ids"]
        loss_mask = encoded["assistant_masks"] if marked else [0] * len(input_ids)
        return Rendered(
            self.text(messages),
            input_ids,
            [bool(kept) for kept in loss_mask],
            marked,
            encoded["offset_mapping"],
        )

    def _apply(self, messages: Messages, **kwargs):
        if self.blocks:
            messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        try:
            return self.tokenizer.apply_chat_template(messages, chat_template=self.template, **kwargs)
        except Exception as error:  # a template is somebody else's program: it may raise anything
            raise TemplateFailed(f"{type(error).__name__}: {error}") from error


def own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's chat template, the default one where it has several; None without any."""
    template = tokenizer.chat_template
    return (template.get("default") if isinstance(template, dict) else template) or None


def find_training_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str | None, list[Finding]]:
    """The template to train with, with generation markers, or None; and what there is to say about it."""
    own = own_template(tokenizer)
    if own is None:
        return None, [finding("no-template", "tokenizer.chat_template is empty")]
    try:
        template = training_template(tokenizer)
    except ChatTemplateError:
        return None, [finding("no-generation-markers", "no {% generation %} in the template, and TRL does not know it")]
    except Exception as error:  # TRL renders the template to look at it
        return None, [finding("template-fails", f"{type(error).__name__}: {error}")]
    if template != own:
        return template, [finding("markers-from-trl", "no {% generation %} in the template itself")]
    return template, []


QUESTION, ANSWER = "What is 6 times 7?", "It is forty-two."
SECOND_QUESTION, SECOND_ANSWER = "And 6 times 8?", "That is forty-eight."
# What the checks let a template write: four turns whose texts occur nowhere else.
CHAT = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": SECOND_QUESTION},
    {"role": "assistant", "content": SECOND_ANSWER},
]


@dataclass(frozen=True)
class EndOfTurn:
    """What a template writes after an answer, up to the next turn's text: the tokens that are not white space."""

    text: str
    positions: list[int]  # of all of them
    marks: list[int]  # positions of those that the tokenizer has as special or added tokens


def find_end_of_turn(
    tokenizer: PreTrainedTokenizerBase, rendered: Rendered, answer: str, until: str | None = None
) -> EndOfTurn:
    """What follows `answer`, up to the text `until` (default: to the end)."""
    start = rendered.text.rindex(answer) + len(answer)
    end = rendered.text.index(until, start) if until else len(rendered.text)
    positions = [i for i, (a, b) in enumerate(rendered.spans) if start <= a < end and rendered.text[a:b].strip()]
    own = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    marks = [i for i in positions if rendered.input_ids[i] in own]
    return EndOfTurn(rendered.text[start:end], positions, marks)


def stop_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> set[int]:
    """The tokens at which generate() stops: the tokenizer's EOS and the model's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {i for i in (*listed, tokenizer.eos_token_id) if i is not None}


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that closes an answer in the tokenizer's chat template; None where there is none.

    A model tuned on the template must learn to say this token in order to stop. Where several tokens close the
    answer, the one that is EOS counts, else the first.
    """
    template = own_template(tokenizer)
    if template is None:
        return None
    try:
        rendered = Renderer(tokenizer, template).rendered(CHAT[:2])
        closing = find_end_of_turn(tokenizer, rendered, ANSWER)
    except ValueError:  # the template fails, or leaves out the answer
        return None
    marks = [rendered.input_ids[i] for i in closing.marks]
    return next((i for i in marks if i == tokenizer.eos_token_id), marks[0] if marks else None)
