"""Validate one conversation: roles, turns and their content."""

from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")
EXAMPLE = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}'


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
            return f"message {i} has the unknown role {role!r}. Use one of {', '.join(ROLES)}"
        if role in ("system", "developer") and i > 0:
            return f"message {i} has the role {role!r}, which may only come first. Move it to the front"
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            return f'message {i} ({role}) has no text. Give it "content": "…" as a string'
    if not any(message["role"] == "assistant" for message in messages):
        return 'has no assistant turn, so nothing to learn. Add {"role": "assistant", "content": "…"}'
    return None
