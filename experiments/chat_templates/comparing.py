"""Compare the derived loss mask of a template with other marks on the same text, token for token."""

import re
from collections import Counter
from dataclasses import replace

from ftkit.conversations.encoding import EncodedText, encode_rendered
from ftkit.conversations.rendering import ChatTemplate, Messages, assistant_indices, shared_length
from ftkit.conversations.turns import RenderedText, Span, Turn, locate_turns

MARKER = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")
# How two masks can differ in a token.
PROMPT = "the generation prompt gives it"
EARLIER = "the messages before the turn give it"
SPACE_AFTER = "white space after the turn"
SPACE_BEFORE = "white space before the turn"
NEXT_TURN = "written only once another turn follows"
CLOSING = "the template closes the turn with it"
LEFT_OUT = "the other leaves the turn out"
OTHER = "not explained"


def without_markers(source: str) -> str:
    """The template with each {% generation %} as an ordinary block, so that it writes the same text."""
    return MARKER.sub(lambda m: "{%" + m[1] + (" endif " if m[2] else " if true ") + m[3] + "%}", source)


class Derived:
    """A conversation with the loss mask that ftkit derives by rendering. Raises TemplateFailed."""

    def __init__(self, template: ChatTemplate, messages: Messages, tools: list | None = None):
        self.template = replace(template, source=without_markers(template.source))
        self.messages, self.tools = self.template.prepare(messages), tools
        self.text, self.turns = locate_turns(self.template, self.messages, tools, {})
        self.located = [turn for turn in self.turns if turn.start < turn.end]
        self.spans: list[Span] = [(turn.start, turn.end) for turn in self.located]
        self.encoded = self.encode(self.spans)

    def encode(self, spans: list[Span]) -> EncodedText:
        """The text's tokens with these spans in the loss."""
        return encode_rendered(self.template.tokenizer, [RenderedText(self.text, spans, [])])[0]

    def compare(self, spans: list[Span]) -> dict[str, int]:
        """Why the tokens of these spans are not those of the derived mask, with the number of tokens for each reason;
        empty where the masks are equal."""
        other = self.encode(spans)
        found = Counter()
        tokens = zip(other.spans, self.encoded.loss_mask, other.loss_mask, strict=True)
        for token, derived, marked in tokens:
            if derived != marked:
                found[self._not_derived(token, spans) if marked else self._not_marked(token, spans)] += 1
        return dict(sorted(found.items()))

    def _not_derived(self, token: Span, spans: list[Span]) -> str:
        """Why a token that the other mask has is not in the derived one."""
        span = next(span for span in spans if span[0] < token[1] and token[0] < span[1])
        turn = self._turn_of(span)
        if turn.start == turn.end:
            return turn.problem
        if token[1] <= turn.start:
            asked, prompt = (self._shared(turn.message, add_generation_prompt=g) for g in (False, True))
            if token[1] <= prompt:
                return PROMPT if asked <= token[0] else EARLIER
            return self._space(token, SPACE_BEFORE, OTHER)
        if not self.text[turn.end : token[1]].strip():
            return SPACE_AFTER
        return turn.problem or (NEXT_TURN if self._shared(turn.message + 1) <= token[0] else OTHER)

    def _not_marked(self, token: Span, spans: list[Span]) -> str:
        """Why a token of the derived mask is not in the other."""
        turn = next(turn for turn in self.located if turn.start < token[1] and token[0] < turn.end)
        its = [span for span in spans if span[0] < turn.end and turn.start < span[1]]
        if not its:
            return f"{LEFT_OUT}: {turn.problem}" if turn.problem else LEFT_OUT
        if token[1] <= its[0][0]:
            return self._space(token, SPACE_BEFORE, OTHER)
        return self._space(token, SPACE_AFTER, CLOSING) if token[0] >= its[-1][1] else OTHER

    def _turn_of(self, span: Span) -> Turn:
        """The turn that a span of the other mask belongs to."""
        if found := [turn for turn in self.located if turn.start < span[1] and span[0] < turn.end]:
            return found[0]
        after = max((turn.message for turn in self.located if turn.end <= span[0]), default=-1)
        return next(turn for turn in self.turns if turn.message > after)

    def _shared(self, k: int, **kwargs) -> int:
        """How far the text is that of its first `k` messages."""
        return shared_length(self.template.render(self.messages[:k], self.tools, **kwargs), self.text)

    def _space(self, token: Span, reason: str, otherwise: str) -> str:
        return otherwise if self.text[slice(*token)].strip() else reason


def marked_spans(template: ChatTemplate, messages: Messages, tools: list | None = None) -> list[Span]:
    """The spans that a template's own {% generation %} markers put in the loss. Raises TemplateFailed."""
    spans = template.render_marked(template.prepare(messages), tools)[1]
    return [span for span in spans if span[0] < span[1]]


def hand_spans(text: str, parts: list[str], messages: Messages, excluded: list[int]) -> list[Span]:
    """Where the parts that somebody found by reading are in the text: one for each turn that is not excluded.

    Args:
        excluded: which of the assistant's turns, counted from 0, have no part.
    """
    spans, after = [], 0
    parts = iter(parts)
    for n, k in enumerate(assistant_indices(messages)):
        if n not in excluded:
            part = next(parts)
            # The template's examples may hold the same words, so start at the question before.
            after = text.index(part, text.find(messages[k - 1]["content"], after))
            spans.append((after, after + len(part)))
            after += len(part)
    return spans
