"""Recognise the formats in which conversations are published, and convert them to rows of `messages`.

TRL's `maybe_convert_to_chatml` renames from/value but keeps the names human and gpt, which no template knows, and takes
seconds to import; so the conversion is done here.
"""

from typing import Any

from .errors import ConversationError
from .files import parse_json
from .validation import EXAMPLE

FORMATS = {  # a minimal row of each
    "messages": EXAMPLE,
    "ShareGPT": '{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}',
    "Alpaca": '{"instruction": "Translate into French.", "input": "Hello.", "output": "Bonjour."}',
    "prompt-completion": '{"prompt": "Hi", "completion": "Hello."}',
    "text": '{"text": "Plain text without turns."}',
}
KEYS = {  # what marks a format; `text` counts only where none of these does, as Alpaca's own data have it, too
    "messages": {"messages"},
    "ShareGPT": {"conversations"},
    "Alpaca": {"instruction", "output"},
    "prompt-completion": {"prompt", "completion"},
}
UNKNOWN = "is in no known format"
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
}
ASKED = ("instruction", "prompt", "question", "query", "input")
ANSWERED = ("output", "completion", "answer", "response", "chosen")

Converted = tuple[str, dict[str, Any], list[str]]  # the format's name, the row, sentences about what was converted


def convert(row: Any) -> Converted:
    """Convert a row of any known format to {"messages": [...]}, or {"text": "..."}; its other keys are kept.

    Raises ConversationError for a row of no format or of several, without its place.
    """
    if not isinstance(row, dict):
        raise ConversationError(f"is not an object. Write {EXAMPLE}")
    name, key = _recognise(row)
    row, notes = dict(row), []
    if name == "ShareGPT":
        row = _from_sharegpt(row, key, notes)
    elif name == "Alpaca":
        row = _from_alpaca(row, notes)
    elif name == "prompt-completion":
        row = _from_prompt_completion(row, notes)
    elif name == "messages":
        if key == "conversations":
            row = {"messages": row.pop(key), **row}
            notes.append("renamed conversations to messages")
        row["messages"] = _with_tool_calls(row["messages"], notes)
    elif not isinstance(row["text"], str) or not row["text"].strip():
        raise ConversationError(f'"text" is empty or not a string. Write {FORMATS["text"]}')
    return name, _with_tools(row, notes), notes


def _recognise(row: dict[str, Any]) -> tuple[str, str]:
    """The format's name and the key of its turns."""
    present = {key for key, value in row.items() if value is not None}
    found = {name: keys for name, keys in KEYS.items() if keys <= present}
    if len(found) > 1:
        names = " and ".join(f"{name} ({', '.join(sorted(keys))})" for name, keys in found.items())
        raise ConversationError(f"has the keys of two formats, {names}: keep those of one")
    for name, keys in found.items():
        key = min(keys)
        if name in ("messages", "ShareGPT"):
            return ("ShareGPT" if _has_turns(row[key], "from") else "messages"), key
        return name, key
    if "text" in present and not _renaming(row, present):
        return "text", "text"
    keys = ", ".join(f'"{key}"' for key in list(row)[:8]) or "none"
    if remedy := _renaming(row, present):
        raise ConversationError(f"has the keys {keys}. {remedy}")
    raise ConversationError(f"{UNKNOWN} (its keys: {keys}). Write {EXAMPLE}")


def _renaming(row: dict[str, Any], present: set[str]) -> str | None:
    """How to rename keys that only look like those of a format: guessing could train on the wrong column."""
    for key in row:
        if key not in ("prompt", "completion", "rejected") and _has_turns(row[key], "role", "from"):
            return f'Rename "{key}" to "messages"'
        if len(row) == 1 and isinstance(row[key], list) and any(isinstance(item, dict) for item in row[key]):
            return f'The rows lie under "{key}": write that list alone, or one of its objects per line'
    asked = next((key for key in ASKED if key in present), None)
    answered = next((key for key in ANSWERED if key in present), None)
    if not asked or not answered:
        return None
    names = ("instruction", "output") if asked == "instruction" else ("prompt", "completion")
    renamed = dict(zip((asked, answered), names, strict=True))
    if asked == "instruction" and "context" in present:
        renamed["context"] = "input"
    return "Rename " + ", ".join(f'"{old}" to "{new}"' for old, new in renamed.items() if old != new)


def _has_turns(value: Any, *keys: str) -> bool:
    return isinstance(value, list) and any(isinstance(turn, dict) and any(k in turn for k in keys) for turn in value)


def _from_sharegpt(row: dict[str, Any], key: str, notes: list[str]) -> dict[str, Any]:
    notes.append("converted from ShareGPT: human → user, gpt → assistant")
    messages = []
    for i, turn in enumerate(row.pop(key)):
        if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys() or {"role", "content"} & turn.keys():
            raise ConversationError(f'turn {i} of "{key}" is not {{"from": "human", "value": "…"}}')
        turn = dict(turn)
        speaker, value = turn.pop("from"), turn.pop("value")
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise ConversationError(f"turn {i} is from the unknown {speaker!r}. Use one of {', '.join(SPEAKERS)}")
        message = {"role": SPEAKERS[speaker], "content": value}
        if speaker == "function_call":
            message |= {"content": "", "tool_calls": _parse_calls(value, i)}
            notes.append("converted ShareGPT's function_call turns to tool_calls of the assistant")
        elif speaker == "observation":
            notes.append("converted ShareGPT's observation turns to the role tool")
        messages.append(message | turn)
    return _with_system(row, messages)


def _parse_calls(value: Any, turn: int) -> list[dict[str, Any]]:
    try:
        calls = parse_json(value) if isinstance(value, str) else value
    except ConversationError as error:
        raise ConversationError(
            f'turn {turn} (function_call) is {error}. Write {{"name": …, "arguments": …}}'
        ) from None
    return [{"type": "function", "function": call} for call in (calls if isinstance(calls, list) else [calls])]


def _from_alpaca(row: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    notes.append("converted from Alpaca: instruction and input → user (a blank line between them), output → assistant")
    texts = {key: row.pop(key, None) for key in ("instruction", "input", "output")}
    for key, text in texts.items():
        if not isinstance(text, str) and (key != "input" or text is not None):
            raise ConversationError(f'"{key}" is not a string. Write {FORMATS["Alpaca"]}')
    question = "\n\n".join(text for text in (texts["instruction"], texts["input"]) if text)
    history = row.pop("history", None) or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise ConversationError('"history" is not a list of pairs. Write [["a question", "its answer"], …]')
    return _with_system(row, [m for pair in [*history, [question, texts["output"]]] for m in _turns(*pair)])


def _from_prompt_completion(row: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    prompt, completion = row.pop("prompt"), row.pop("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        notes.append("converted from prompt-completion: prompt → user, completion → assistant")
        return _with_system(row, _turns(prompt, completion))
    if isinstance(prompt, list) and isinstance(completion, list):
        notes.append("converted from prompt-completion: messages are those of prompt, then those of completion")
        return {"messages": _with_tool_calls(prompt + completion, notes), **row}
    raise ConversationError(
        f'"prompt" and "completion" are not both strings or both lists of messages. Write {EXAMPLE}'
    )


def _turns(question: Any, answer: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _with_system(row: dict[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any]:
    if system := row.pop("system", None):
        if messages and messages[0]["role"] == "system":
            raise ConversationError('has a "system" key and a system turn: keep one')
        messages = [{"role": "system", "content": system}, *messages]
    return {"messages": messages, **row}


def _with_tool_calls(messages: Any, notes: list[str]) -> Any:
    """Messages with OpenAI's older function_call and role "function" as tool_calls and role "tool"."""
    if not isinstance(messages, list):
        return messages  # the validation says what is wrong
    converted = []
    for i, message in enumerate(messages):
        if isinstance(message, dict) and message.get("role") == "assistant" and message.get("function_call"):
            if message.get("tool_calls"):
                raise ConversationError(f"message {i} has function_call and tool_calls: keep tool_calls")
            call = {"type": "function", "function": message["function_call"]}
            message = {k: v for k, v in message.items() if k != "function_call"} | {"tool_calls": [call]}
            notes.append("converted OpenAI's older function_call to tool_calls")
        elif isinstance(message, dict) and message.get("role") == "function":
            message = message | {"role": "tool"}
            notes.append('converted the older role "function" to "tool"')
        converted.append(message)
    return converted


def _with_tools(row: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """The row with `tools`, also from OpenAI's older `functions`; JSON strings, as Parquet stores them, are parsed."""
    for key in ("tools", "functions", "chat_template_kwargs"):
        if isinstance(row.get(key), str):
            try:
                row[key] = parse_json(row[key]) if row[key].strip() else None
            except ConversationError as error:
                raise ConversationError(f'"{key}" is a string and {error}. Write the list itself') from None
    if functions := row.get("functions"):
        if row.get("tools") or not isinstance(functions, list):
            raise ConversationError('has the older "functions", beside "tools" or not as a list: write "tools"')
        del row["functions"]
        row["tools"] = [{"type": "function", "function": function} for function in functions]
        notes.append("converted OpenAI's older functions to tools")
    return row
