"""Locate what the assistant writes in a rendered conversation.

Where the template marks it with {% generation %}, the markers say so. Everywhere else it is found by rendering: the
conversation up to a turn with the generation prompt, and with the turn. A turn is in the loss only if the whole text
continues what the model would be given, with what it should write there.
"""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from .errors import ConversationError
from .rendering import TRAIN_KEYS, ChatTemplate, Messages, TemplateFailed, assistant_indices, shared_length

Span = tuple[int, int]  # start and end of characters
UNWRITTEN = "the template does not write its tool call"
SPACE = re.compile(r"\s+")


class Turn(NamedTuple):
    """A turn of the assistant in the rendered text."""

    message: int  # index in the conversation
    start: int  # of the text in the loss
    end: int  # equal to `start` where none of it can be proved
    problem: str = ""  # why the turn, or its end, is not in the loss


@dataclass(frozen=True)
class RenderedText:
    """A conversation as text, with the parts in the loss."""

    text: str
    loss_spans: list[Span]
    problems: list[Turn]  # turns that are not, or not wholly, in the loss although they should be


def render_with_loss(
    template: ChatTemplate, messages: Messages, tools: list | None = None, kwargs: dict[str, Any] | None = None
) -> RenderedText:
    """Render a conversation and find what of it is in the loss.

    A message of the assistant with a TRAIN_KEYS entry of 0 or False is left out of the loss.

    Args:
        kwargs: for the template, such as `enable_thinking`.

    Raises TemplateFailed, and ConversationError for a turn to leave out that cannot be located.
    """
    given = template.prepare(messages), tools, kwargs or {}
    untrained = {k for k in assistant_indices(messages) if not is_trained(messages[k])}
    if not template.has_generation_markers:
        text, turns = locate_turns(template, *given)
        turns = [turn for turn in turns if turn.message not in untrained]
        spans = [(turn.start, turn.end) for turn in turns if turn.start < turn.end]
        return RenderedText(text, spans, [turn for turn in turns if turn.problem])
    text, spans = template.render_marked(given[0], tools, **given[2])
    spans = [(start, end) for start, end in spans if start < end]
    if untrained:
        left_out = [turn for turn in locate_turns(template, *given)[1] if turn.message in untrained]
        if unknown := [turn for turn in left_out if turn.start == turn.end]:
            raise ConversationError(
                f"message {unknown[0].message} is not to be trained on, and {unknown[0].problem}: leave the "
                "conversation out, or cut it before that message"
            )
        spans = [span for span in spans if not any(turn.start < span[1] and span[0] < turn.end for turn in left_out)]
    return RenderedText(text, spans, [])


def is_trained(message: dict[str, Any]) -> bool:
    """Whether a message of the assistant is in the loss: unless one of TRAIN_KEYS says no."""
    return all(bool(message[key]) for key in TRAIN_KEYS if message.get(key) is not None)


def locate_turns(
    template: ChatTemplate, prepared: Messages, tools: list | None, kwargs: dict[str, Any]
) -> tuple[str, list[Turn]]:
    """The text, and each of the assistant's turns in it by rendering prefixes. Raises TemplateFailed."""
    text = template.render(prepared, tools, **kwargs)
    locate = _Locator(template, prepared, tools, kwargs, text)
    return text, [locate(k) for k in assistant_indices(prepared)]


@dataclass(frozen=True)
class _Locator:
    template: ChatTemplate
    messages: Messages  # prepared
    tools: list | None
    kwargs: dict[str, Any]
    text: str  # of all messages

    def __call__(self, k: int) -> Turn:
        try:
            start = self.start(k)
            whole = self.text if k == len(self.messages) - 1 else self.before(k + 1)
            whole = whole.removesuffix(self.template.trailing_prompt)
        except TemplateFailed as error:
            return Turn(k, 0, 0, f"the template cannot write the conversation up to it: {error}")
        if start is None:
            return Turn(k, 0, 0, "the text before it is not what the model would be given to generate it")
        end, problem = (len(whole), "") if self.text.startswith(whole) else self.shared_end(whole, start)
        if end <= start:
            return Turn(k, start, start, problem or "the template writes nothing for it")
        names = [call.get("function", call)["name"] for call in self.messages[k].get("tool_calls") or []]
        if any(name not in self.text[start:end] for name in names):
            return Turn(k, start, start, UNWRITTEN)
        return Turn(k, start, end, problem)

    def before(self, k: int, **kwargs) -> str:
        """The text of the messages before `k`."""
        return self.template.render(self.messages[:k], self.tools, **self.kwargs, **kwargs)

    def header(self, k: int) -> str:
        """The text before the content of an answer in place of message `k`."""
        return self.template.header(self.messages[:k], self.tools, **self.kwargs)

    def start(self, k: int) -> int | None:
        """Where turn `k` begins; None where the text before it is not the one that generation sees."""
        if k == 0:
            prompt = self.header(k)
        else:
            prompt = self.before(k, add_generation_prompt=True)
            if not self.text.startswith(prompt):
                return self.start_within(prompt, k)
            if self.template.lacks_prompt:
                prompt = self.header(k)
        if not self.text.startswith(prompt):
            return None
        # Some templates open a turn again after a tool's result, although the prompt does not.
        header = self.template.role_header
        return len(prompt) + len(header) * self.text.startswith(header, len(prompt))

    def start_within(self, prompt: str, k: int) -> int | None:
        """Where turn `k` begins if the prompt has other white space than the text, or opens what the text does not
        have, such as <think>."""
        header, plain = self.header(k), self.before(k).removesuffix(self.template.trailing_prompt)
        if self.text.startswith(header) and "".join(header.split()) == "".join(prompt.split()):
            return len(header)
        shared = shared_length(prompt, self.text)
        ends = [space.end() for space in SPACE.finditer(self.text, 0, shared)]
        ends += [token.end() for token in self.template.special_tokens.finditer(self.text) if token.end() <= shared]
        return max(ends) if ends and self.text.startswith(plain) and max(ends) > len(plain) else None

    def shared_end(self, whole: str, start: int) -> tuple[int, str]:
        """Where a turn that ends `whole` stops being the same in the text, and the problem with it, if any."""
        special = self.template.special_tokens
        shared = shared_length(whole, self.text)
        for token in special.finditer(whole):
            if token.start() < shared < token.end():
                shared = token.start()
        if shared < start or special.sub("", whole[shared:]).strip():
            return start, "it is written in another way once later turns follow"
        if whole[shared:].strip() and not _ends_with_token(special, whole[start:shared]):
            return shared, "another token ends it once later turns follow"
        return shared, ""


def _ends_with_token(special, text: str) -> bool:
    ends = [token.end() for token in special.finditer(text)]
    return bool(ends) and not text[ends[-1] :].strip()
