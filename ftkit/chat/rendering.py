"""Conversations as the checks see them: text, T tokens, loss mask, and the end-of-turn token."""

from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftkit.conversations.encoding import encode_rendered, training_template
from ftkit.conversations.errors import ChatTemplateError
from ftkit.conversations.rendering import ANSWER, CHAT, ChatTemplate, Messages, own_template
from ftkit.conversations.turns import RenderedText, Span, Turn, render_with_loss
from ftkit.findings import Finding

from .findings import finding


@dataclass(frozen=True)
class Rendered:
    """A conversation as text and as T tokens."""

    text: str
    loss_spans: list[Span]  # characters in the loss
    problems: list[Turn]  # turns that are not, or not wholly, in the loss
    input_ids: list[int]
    loss_mask: list[bool]
    spans: list[Span]  # characters of each token

    @cached_property
    def loss_text(self) -> str:
        return "".join(self.text[start:end] for start, end in self.loss_spans)


def render(template: ChatTemplate, messages: Messages, tools: list | None = None, **kwargs) -> Rendered:
    """The conversation as text and tokens. Raises TemplateFailed."""
    return tokenize(template.tokenizer, render_with_loss(template, messages, tools, kwargs))


def tokenize(tokenizer: PreTrainedTokenizerBase, rendered: RenderedText) -> Rendered:
    [encoded] = encode_rendered(tokenizer, [rendered])
    return Rendered(rendered.text, rendered.loss_spans, rendered.problems, *encoded)


def tokens(template: ChatTemplate, messages: Messages, **kwargs) -> list[int]:
    """The conversation as token ids, `kwargs` as for the template. Raises TemplateFailed."""
    [encoded] = encode_rendered(template.tokenizer, [RenderedText(template.text(messages, **kwargs), [], [])])
    return encoded.input_ids


def find_training_template(tokenizer: PreTrainedTokenizerBase) -> tuple[ChatTemplate | None, list[Finding]]:
    """The template to train with, or None without one, and the findings about it."""
    try:
        template = ChatTemplate(tokenizer, training_template(tokenizer))
    except ChatTemplateError:
        named = tokenizer.chat_template
        what = (
            f"there are {', '.join(named)}, and none is named default" if named else "tokenizer.chat_template is empty"
        )
        return None, [finding("no-template", what)]
    if template.source != own_template(tokenizer):
        return template, [finding("markers-from-trl", "no {% generation %} in the template itself")]
    if not template.has_generation_markers:
        return template, [finding("no-generation-markers", "no {% generation %} in the template")]
    return template, []


@dataclass(frozen=True)
class EndOfTurn:
    """What a template writes after an answer, up to the next turn's text."""

    text: str
    positions: list[int]  # of its tokens, without those of white space that are not special
    special_positions: list[int]  # of the special and added tokens among them


def find_end_of_turn(
    tokenizer: PreTrainedTokenizerBase, rendered: Rendered, answer: str, until: str | None = None
) -> EndOfTurn:
    """What follows `answer`, up to the text `until` (default: to the end)."""
    start = rendered.text.rindex(answer) + len(answer)
    end = rendered.text.index(until, start) if until else len(rendered.text)
    own = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    inside = [i for i, (a, _) in enumerate(rendered.spans) if start <= a < end]
    special = [i for i in inside if rendered.input_ids[i] in own]
    positions = [i for i in inside if i in special or rendered.text[slice(*rendered.spans[i])].strip()]
    return EndOfTurn(rendered.text[start:end], positions, special)


def stop_ids(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> set[int]:
    """The tokens at which generate() stops: those of the model's generation config, where it has any; the tokenizer's
    EOS counts only without a model, because generate() does not ask for it.
    """
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if configured is None:
        configured = tokenizer.eos_token_id
    return {i for i in (configured if isinstance(configured, list) else [configured]) if i is not None}


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The end-of-turn token of the tokenizer's chat template: EOS if it is among the special tokens after an answer,
    else the first of them; None without any. A model tuned on the template stops by generating it.
    """
    source = own_template(tokenizer)
    if source is None:
        return None
    try:
        rendered = render(ChatTemplate(tokenizer, source), CHAT[:2])
        end_of_turn = find_end_of_turn(tokenizer, rendered, ANSWER)
    except ValueError:  # the template fails, or leaves out the answer
        return None
    special = [rendered.input_ids[i] for i in end_of_turn.special_positions]
    return tokenizer.eos_token_id if tokenizer.eos_token_id in special else next(iter(special), None)
