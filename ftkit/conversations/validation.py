"""Validate one conversation: roles, turns and their content."""

from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
OTHER_NAMES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "observation": "tool"}
EXAMPLE = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}'
CALL = '{"type": "function", "function": {"name": "…", "arguments": {…}}}'


def find_problem(row: Any) -> str | None:
    """The first error of a conversation and how to fix it, or None."""
    if not isinstance(row, dict) or "messages" not in row:
        return f'lacks "messages". Write {EXAMPLE}'
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        return f'"messages" is empty or not a list. Write {EXAMPLE}'
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            return f'message {i} is not an object. Write {{"role": "user", "content": "…"}}'
        role = message.get("role")
        if role not in ROLES:
            named = OTHER_NAMES.get(role) if isinstance(role, str) else None
            return f"message {i} has the unknown role {role!r}. Use {named or 'one of ' + ', '.join(ROLES)}"
        if role in ("system", "developer") and i > 0:
            return f"message {i} has the role {role!r}, which may only come first. Move it to the front"
        if problem := _problem_of_calls(message.get("tool_calls")) or _problem_of_content(message):
            return f"message {i} ({role}) {problem}"
    if not any(message["role"] == "assistant" for message in messages):
        return 'has no assistant turn, so nothing to learn. Add {"role": "assistant", "content": "…"}'
    tools = row.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        return '"tools" is not a list of objects. Write [{"type": "function", "function": {"name": "…"}}]'
    if not isinstance(row.get("chat_template_kwargs"), dict | None):
        return '"chat_template_kwargs" is not an object. Write {"enable_thinking": false}'
    return None


def _problem_of_content(message: dict[str, Any]) -> str | None:
    content = message.get("content")
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return None
    if not isinstance(content, list) or not content:
        return 'has no text. Give it "content": "…" as a string'
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind != "text":
            named = f"a block of the type {kind!r}" if kind else "a block without a type"
            return f'has {named} in its content, and this reads text only. Use {{"type": "text", "text": "…"}}'
        if not isinstance(block.get("text"), str):
            return 'has a block without text. Give it "text": "…" as a string'
    return None


def _problem_of_calls(calls: Any) -> str | None:
    if calls is None:
        return None
    if not isinstance(calls, list):
        return f'has "tool_calls" that are not a list. Write [{CALL}]'
    for k, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            return f"has a tool call, number {k}, whose function has no name as a string. Write {CALL}"
    return None
