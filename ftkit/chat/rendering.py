"""Render conversations with a chat template: text, T tokens, loss mask, and the end-of-turn token."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftkit.conversations import ChatTemplateError, training_template
from ftkit.findings import Finding

from .findings import finding

Messages = list[dict[str, Any]]
MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers and TRL look for them


class TemplateFailed(ValueError):
    """The chat template or the tokenizer raised; carries its message."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text and as T tokens."""

    text: str
    input_ids: list[int]
    loss_mask: list[bool]  # True inside {% generation %}
    has_generation_markers: bool  # without them, loss_mask is all False
    spans: list[tuple[int, int]]  # start and end in `text` of each token

    @cached_property
    def loss_text(self) -> str:
        """The characters whose tokens are in the loss."""
        chars = {k for span, kept in zip(self.spans, self.loss_mask, strict=True) if kept for k in range(*span)}
        return "".join(self.text[k] for k in sorted(chars))


@dataclass(frozen=True)
class Renderer:
    tokenizer: PreTrainedTokenizerBase
    template: str
    content_blocks: bool = False  # give content as a list of blocks, as templates of vision models want it

    def text(self, messages: Messages, **kwargs) -> str:
        """The conversation as text. Raises TemplateFailed."""
        return self._apply(messages, tokenize=False, **kwargs)

    def tokens(self, messages: Messages, **kwargs) -> list[int]:
        return self._apply(messages, return_dict=False, **kwargs)

    def rendered(self, messages: Messages) -> Rendered:
        """The conversation as text and tokens. Raises TemplateFailed, also for a tokenizer without offsets."""
        has_generation_markers = MARKERS.search(self.template) is not None
        encoded = self._apply(
            messages,
            return_dict=True,
            return_assistant_tokens_mask=has_generation_markers,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        input_ids = encoded["input_ids"]
        loss_mask = encoded["assistant_masks"] if has_generation_markers else [0] * len(input_ids)
        spans = encoded["offset_mapping"]
        return Rendered(self.text(messages), input_ids, list(map(bool, loss_mask)), has_generation_markers, spans)

    def _apply(self, messages: Messages, **kwargs):
        if self.content_blocks:
            messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        try:
            return self.tokenizer.apply_chat_template(messages, chat_template=self.template, **kwargs)
        except Exception as error:  # templates can raise anything
            raise TemplateFailed(f"{type(error).__name__}: {error}") from error


def own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's chat template, the default one where it has several; None without any."""
    template = tokenizer.chat_template
    return (template.get("default") if isinstance(template, dict) else template) or None


def find_training_template(tokenizer: PreTrainedTokenizerBase) -> tuple[str | None, list[Finding]]:
    """The template with generation markers to train with, or None, and the findings about it."""
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
# The conversation that the checks render: four turns whose texts occur nowhere else.
CHAT = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": SECOND_QUESTION},
    {"role": "assistant", "content": SECOND_ANSWER},
]


@dataclass(frozen=True)
class EndOfTurn:
    """What a template writes after an answer, up to the next turn's text."""

    text: str
    positions: list[int]  # of the tokens that are not white space
    special_positions: list[int]  # of the special and added tokens among them


def find_end_of_turn(
    tokenizer: PreTrainedTokenizerBase, rendered: Rendered, answer: str, until: str | None = None
) -> EndOfTurn:
    """What follows `answer`, up to the text `until` (default: to the end)."""
    start = rendered.text.rindex(answer) + len(answer)
    end = rendered.text.index(until, start) if until else len(rendered.text)
    positions = [i for i, (a, b) in enumerate(rendered.spans) if start <= a < end and rendered.text[a:b].strip()]
    own = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    special_positions = [i for i in positions if rendered.input_ids[i] in own]
    return EndOfTurn(rendered.text[start:end], positions, special_positions)


def stop_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> set[int]:
    """The tokens at which generate() stops: the tokenizer's EOS and the model's."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {i for i in (*listed, tokenizer.eos_token_id) if i is not None}


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The end-of-turn token of the tokenizer's chat template: EOS if it is among the special tokens after an answer,
    else the first of them; None without any. A model tuned on the template stops by generating it.
    """
    template = own_template(tokenizer)
    if template is None:
        return None
    try:
        rendered = Renderer(tokenizer, template).rendered(CHAT[:2])
        end_of_turn = find_end_of_turn(tokenizer, rendered, ANSWER)
    except ValueError:  # the template fails, or leaves out the answer
        return None
    special = [rendered.input_ids[i] for i in end_of_turn.special_positions]
    return tokenizer.eos_token_id if tokenizer.eos_token_id in special else next(iter(special), None)
