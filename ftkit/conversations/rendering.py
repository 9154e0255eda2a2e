"""Render conversations with a chat template, in the form of messages that this template reads."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

Messages = list[dict[str, Any]]
MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")  # as transformers and TRL look for them
# A message of the assistant may say whether it is in the loss: OpenAI's weight, axolotl's train and training.
TRAIN_KEYS = ("weight", "train", "training", "loss_mask")
QUESTION, ANSWER = "What is 6 times 7?", "It is forty-two."
SECOND_QUESTION, SECOND_ANSWER = "And 6 times 8?", "That is forty-eight."
# The conversation that templates are tried on: four turns whose texts occur nowhere else.
CHAT = [
    {"role": "user", "content": QUESTION},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": SECOND_QUESTION},
    {"role": "assistant", "content": SECOND_ANSWER},
]


PROBES = ("Xylem", "Quartz")  # two answers that share no letter


class TemplateFailed(ValueError):
    """The chat template or the tokenizer raised; carries its message."""


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer with one chat template: its own, or another to train with."""

    tokenizer: PreTrainedTokenizerBase
    source: str  # Jinja

    @property
    def has_generation_markers(self) -> bool:
        return MARKERS.search(self.source) is not None

    @cached_property
    def wants_blocks(self) -> bool:
        """Whether it reads content as a list of blocks, as templates of vision models do, and loses plain strings."""
        return not self._writes(CHAT[:2]) and self._writes(as_blocks(CHAT[:2]))

    @cached_property
    def wants_text_arguments(self) -> bool:
        """Whether it pastes a tool call's arguments into the text, and so needs them as a JSON string."""
        as_object, as_text = (self._written_call(arguments) for arguments in ({"k": "v"}, '{"k": "v"}'))
        # Python's own way of writing a dictionary has other quotes than JSON.
        return (not as_object or "{'k'" in as_object) and '{"k": "v"}' in as_text

    @cached_property
    def wants_content(self) -> bool:
        """Whether it fails at a tool call in a message without content, and not if that is empty."""
        return not self._written_call({}, {}) and bool(self._written_call({}))

    def _written_call(self, arguments: dict | str, content: dict | None = None) -> str:
        call = {"type": "function", "id": "000000000", "function": {"name": "f", "arguments": arguments}}
        message = {"role": "assistant", "tool_calls": [call], **({"content": ""} if content is None else content)}
        try:
            return self.render([CHAT[0], message])
        except TemplateFailed:
            return ""

    @cached_property
    def special_tokens(self) -> re.Pattern[str]:
        """Matches the special and added tokens of the tokenizer."""
        names = {*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()}
        longest_first = sorted((name for name in names if name.strip()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @cached_property
    def lacks_prompt(self) -> bool:
        """Whether `add_generation_prompt` adds nothing although the template writes a role header before an answer."""
        question = self.prepare(CHAT[:1])
        try:
            prompt = self.render(question, add_generation_prompt=True)
            header = self.header(question)[len(prompt) :]
            return prompt == self.render(question) and bool(header.strip()) and not self.trailing_prompt
        except TemplateFailed:
            return False

    @cached_property
    def role_header(self) -> str:
        """What `add_generation_prompt` adds after a question; empty where it adds nothing or rewrites the question."""
        question = self.prepare(CHAT[:1])
        try:
            plain, prompt = self.render(question), self.render(question, add_generation_prompt=True)
        except TemplateFailed:
            return ""
        return prompt.removeprefix(plain) if prompt.startswith(plain) else ""

    @cached_property
    def trailing_prompt(self) -> str:
        """The role header that some templates write after the last turn, asked for or not; empty for others."""
        question, answered, more = (self.prepare(CHAT[:n]) for n in (1, 2, 3))
        try:
            asked, whole, longer = self.render(question), self.render(answered), self.render(more)
            if not self.header(question).startswith(asked):
                return ""
        except TemplateFailed:
            return ""
        tail, between = whole.partition(ANSWER)[2], longer.partition(ANSWER)[2].partition(SECOND_QUESTION)[0]
        # It follows a question, too, and no answer that another question follows.
        same, kept = shared_length(tail[::-1], asked.partition(QUESTION)[2][::-1]), shared_length(tail, between)
        spans = [token.span() for token in self.special_tokens.finditer(tail)]
        # What closes a turn ends with EOS, or else with the first special token: headers may begin with the same ones.
        ends = [end for start, end in spans if end <= kept]
        ends = [end for end in ends if tail.endswith(self.tokenizer.eos_token or "\0", 0, end)] or ends[:1]
        closing = max(ends, default=0 if spans else kept)
        closing = max(closing + len(tail[closing:kept]) - len(tail[closing:kept].lstrip()), len(tail) - same)
        rest = tail[max((end for start, end in spans if start < closing < end), default=closing) :]
        return rest if rest.strip() else ""

    def header(self, before: Messages, tools: list | None = None, **kwargs) -> str:
        """The text before the content of an answer to `before` (prepared). Raises TemplateFailed."""
        answers = [self.prepare([{"role": "assistant", "content": probe}]) for probe in PROBES]
        texts = [self.render(before + answer, tools, **kwargs) for answer in answers]
        return texts[0][: shared_length(*texts)]

    def prepare(self, messages: Messages) -> Messages:
        """The messages in the form that this template reads: content as text or blocks, arguments parsed or as text.

        Keys about the loss are left out.
        """
        prepared = [{k: v for k, v in m.items() if k not in TRAIN_KEYS and v is not None} for m in messages]
        for message in prepared:
            if isinstance(message.get("content"), list) and not self.wants_blocks:
                message["content"] = "".join(block["text"] for block in message["content"])
            if message.get("tool_calls"):
                message["tool_calls"] = [self._prepare_call(call) for call in message["tool_calls"]]
                if "content" not in message and self.wants_content:
                    message["content"] = ""
        return as_blocks(prepared) if self.wants_blocks else prepared

    def text(self, messages: Messages, tools: list | None = None, **kwargs) -> str:
        """The conversation as text; `kwargs` as for the template, such as `add_generation_prompt`.

        Raises TemplateFailed.
        """
        return self.render(self.prepare(messages), tools, **kwargs)

    def render(self, prepared: Messages, tools: list | None = None, **kwargs) -> str:
        """As `text`, for messages in the form that the template reads. Raises TemplateFailed."""
        return self._call(prepared, tools, **kwargs)[0][0]

    def render_marked(
        self, prepared: Messages, tools: list | None = None, **kwargs
    ) -> tuple[str, list[tuple[int, int]]]:
        """As `render`, with the start and end of each {% generation %} block. Raises TemplateFailed."""
        texts, spans = self._call(prepared, tools, return_assistant_tokens_mask=True, **kwargs)
        return texts[0], spans[0]

    def _call(self, prepared: Messages, tools: list | None, **kwargs):
        # As apply_chat_template does, without tokenising.
        kwargs = {**self.tokenizer.special_tokens_map, **kwargs}
        try:
            return render_jinja_template([prepared], tools=tools or None, chat_template=self.source, **kwargs)
        except Exception as error:  # templates can raise anything
            raise TemplateFailed(f"{type(error).__name__}: {error}") from error

    def _prepare_call(self, call: dict) -> dict:
        function = dict(call.get("function", call))
        arguments = function.get("arguments")
        if self.wants_text_arguments and not isinstance(arguments, str):
            function["arguments"] = json.dumps(arguments, ensure_ascii=False)
        elif not self.wants_text_arguments and isinstance(arguments, str):
            function["arguments"] = parse_arguments(arguments)
        return {**call, "function": function} if "function" in call else function

    def _writes(self, prepared: Messages) -> bool:
        try:
            text = self.render(prepared)
        except TemplateFailed:
            return False
        return QUESTION in text and ANSWER in text


def shared_length(*texts: str) -> int:
    """How many characters the texts have in common at their beginning."""
    return len(os.path.commonprefix(texts))  # noqa: RUF071 -- characters are meant, not parts of a path


def own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's chat template, the default one where it has several; None without one."""
    template = tokenizer.chat_template
    return (template.get("default") if isinstance(template, dict) else template) or None


def as_blocks(messages: Messages) -> Messages:
    """The messages with each content as a list of text blocks."""

    def block(message: dict) -> dict:
        content = message.get("content")
        return message | {"content": [{"type": "text", "text": content}]} if isinstance(content, str) else message

    return [block(message) for message in messages]


def parse_arguments(arguments: str) -> Any:
    """A tool call's arguments from JSON; the string itself where it is none, or no object."""
    try:
        parsed = json.loads(arguments)
    except ValueError:
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def content_text(message: dict[str, Any]) -> str:
    """The text of a message, which may be a string, a list of text blocks, or missing."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(block.get("text", "") for block in content)


def assistant_indices(messages: Iterable[dict[str, Any]]) -> list[int]:
    return [k for k, message in enumerate(messages) if message["role"] == "assistant"]
