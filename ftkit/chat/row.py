"""Check one conversation against the text that the template writes of it."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ftkit.conversations.rendering import (
    TRAIN_KEYS,
    ChatTemplate,
    Messages,
    assistant_indices,
    content_text,
    parse_arguments,
)
from ftkit.conversations.turns import RenderedText, is_trained

REASONING = ("reasoning_content", "reasoning", "thinking")
Observed = tuple[str, str]  # code of a rule, and what was observed


def check_row(template: ChatTemplate, row: dict[str, Any], rendered: RenderedText) -> Iterator[Observed]:
    """What training would lose of a row (a dict with `messages`), as code and observation."""
    messages = row["messages"]
    yield from _check_contents(template, messages, rendered)
    yield from _check_extras(messages, rendered)
    yield from _check_tools(messages, row.get("tools") or [], rendered.text)
    for name in row.get("chat_template_kwargs") or {}:
        if name not in template.source:
            yield "unknown-template-argument", f"the template does not read {name!r} of chat_template_kwargs"
    if messages[-1]["role"] != "assistant":
        yield "ends-without-answer", f"the last message is the {messages[-1]['role']}'s"


def _check_contents(template: ChatTemplate, messages: Messages, rendered: RenderedText) -> Iterator[Observed]:
    """Check that each text is written, in its place or as often as it occurs, and that only answers are in the loss."""
    text, start = rendered.text, 0
    counts = Counter(content_text(message).strip() for message in messages)
    rewritten = {turn.message for turn in rendered.problems}
    for k, message in enumerate(messages):
        content, role = content_text(message), message["role"]
        if not content.strip():
            if role == "assistant" and not message.get("tool_calls") and is_trained(message):
                yield "empty-answer", f"message {k + 1} says nothing: {content!r}"
            continue
        if template.special_tokens.search(content):
            token = template.special_tokens.search(content)[0]
            yield "control-token-in-text", f"{token!r} in the {role}'s {_short(content)}"
        at = text.find(content, start)
        expected = content
        if at < 0 and (at := text.find(expected := content.strip(), start)) >= 0:
            yield "text-altered", f"the {role}'s {_short(content)} loses space at its ends"
        if at < 0:  # templates may move a text, escape it or space it in another way
            if k not in rewritten and not _written(content.strip(), text, counts[content.strip()]):
                yield "text-lost", f"the {role}'s {_short(content)} is not written"
            continue
        start = at + len(expected)
        if role != "assistant" and any(a < start and at < b for a, b in rendered.loss_spans):
            yield "prompt-in-loss", f"the {role}'s {_short(content)} is in the loss"


def _written(content: str, text: str, times: int) -> bool:
    escaped = (json.dumps(content, ensure_ascii=ascii)[1:-1] for ascii in (True, False))
    if any(text.count(form) >= times for form in (content, *escaped)):
        return True
    return "".join(content.split()) in "".join(text.split())


def _check_extras(messages: Messages, rendered: RenderedText) -> Iterator[Observed]:
    """Check the keys of the assistant's messages beside their content: reasoning, and whether they train."""
    rewritten = {turn.message for turn in rendered.problems}
    for k in assistant_indices(messages):
        message = messages[k]
        for name in REASONING:
            reasoning = message.get(name)
            if not isinstance(reasoning, str) or k in rewritten:
                continue
            if not _written(reasoning.strip(), rendered.text, 1):
                yield "text-lost", f"the {name} of message {k + 1}, {_short(reasoning)}, is not written"
        if not is_trained(message):
            named = next(key for key in TRAIN_KEYS if message.get(key) is not None and not message[key])
            yield "turns-left-out", f"message {k + 1} has {named}: {message[named]}"


def _check_tools(messages: Messages, tools: list[dict[str, Any]], text: str) -> Iterator[Observed]:
    for tool in tools:
        if (name := str(tool.get("function", tool).get("name", ""))) not in text:
            yield "text-lost", f"the tool {name!r} of tools is not written"
    for message in messages:
        for call in message.get("tool_calls") or []:
            function = call.get("function", call)
            name, arguments = str(function.get("name", "")), function.get("arguments")
            if name not in text:
                yield "text-lost", f"the call of the tool {name!r} is not written"
            if isinstance(arguments, str):
                if isinstance(parse_arguments(arguments), str):
                    yield "arguments-not-json", f"the arguments of {name!r} are {_short(arguments)}"
                else:
                    yield "arguments-as-text", f"the arguments of {name!r} are a JSON string, {_short(arguments)}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:20] + "…" + text[-19:])
