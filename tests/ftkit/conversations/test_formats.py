"""Published formats become `messages`; what is ambiguous or unknown is refused with what to rename."""

import json

import pytest

from ftkit.conversations import ConversationError, find_problem
from ftkit.conversations.formats import FORMATS, convert

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
TIDE = {"name": "tide", "arguments": '{"harbour": "north"}'}
CALL = {"type": "function", "function": TIDE}


def turns(*pairs):
    return [{"from": speaker, "value": value} for speaker, value in pairs]


SHAREGPT = turns(("human", "q"), ("gpt", "a"))


@pytest.mark.parametrize("name", FORMATS)
def test_the_examples_are_of_their_formats(name):
    found, row, _ = convert(json.loads(FORMATS[name]))
    assert found == name
    assert "text" in row if name == "text" else find_problem(row) is None


@pytest.mark.parametrize(
    ("row", "name", "messages"),
    [
        ({"messages": [Q, A]}, "messages", [Q, A]),
        ({"conversations": [Q, A]}, "messages", [Q, A]),
        ({"conversations": SHAREGPT}, "ShareGPT", [Q, A]),
        ({"messages": SHAREGPT}, "ShareGPT", [Q, A]),
        ({"conversations": SHAREGPT, "system": "s"}, "ShareGPT", [SYSTEM, Q, A]),
        ({"conversations": turns(("system", "s"), ("user", "q"), ("assistant", "a"))}, "ShareGPT", [SYSTEM, Q, A]),
        ({"conversations": SHAREGPT[:1] + [SHAREGPT[1] | {"weight": 0}]}, "ShareGPT", [Q, A | {"weight": 0}]),
        ({"instruction": "q", "output": "a"}, "Alpaca", [Q, A]),
        ({"instruction": "q", "input": "", "output": "a", "system": "", "text": "x"}, "Alpaca", [Q, A]),
        ({"instruction": "q", "input": "b", "output": "a"}, "Alpaca", [Q | {"content": "q\n\nb"}, A]),
        (
            {"instruction": "q", "output": "a", "system": "s", "history": [["q", "a"]]},
            "Alpaca",
            [SYSTEM, Q, A, Q, A],
        ),
        ({"prompt": "q", "completion": "a", "system": "s"}, "prompt-completion", [SYSTEM, Q, A]),
        ({"prompt": [SYSTEM, Q], "completion": [A]}, "prompt-completion", [SYSTEM, Q, A]),
        ({"messages": [Q, A], "conversations": None, "prompt": "q"}, "messages", [Q, A]),
    ],
)
def test_a_row_becomes_messages(row, name, messages):
    before = json.dumps(row)
    found, converted, notes = convert(row)
    assert (found, converted["messages"]) == (name, messages)
    assert bool(notes) == (row.get("messages") != messages)
    assert json.dumps(row) == before


def test_other_keys_are_kept_and_tools_in_a_string_are_parsed():
    row = {"source": "x", "tools": json.dumps([CALL]), "chat_template_kwargs": '{"enable_thinking": false}'}
    _, converted, _ = convert(row | {"conversations": SHAREGPT})
    kwargs = {"enable_thinking": False}
    assert converted == {"messages": [Q, A], "source": "x", "tools": [CALL], "chat_template_kwargs": kwargs}
    assert convert({"messages": [Q, A], "tools": ""})[1]["tools"] is None
    with pytest.raises(ConversationError, match=r'"tools" is a string and not JSON'):
        convert({"messages": [Q, A], "tools": "tide()"})


def test_calls_of_sharegpt_and_of_the_older_openai_format():
    called, told = A | {"content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "high"}
    row = {"conversations": turns(("human", "q"), ("function_call", json.dumps(TIDE)), ("observation", "high"))}
    name, converted, notes = convert(row)
    assert converted["messages"] == [Q, called, told]
    assert name == "ShareGPT" and len(notes) == 3
    old = [Q, {"role": "assistant", "content": None, "function_call": TIDE}, {"role": "function", "content": "high"}]
    name, converted, notes = convert({"messages": old, "functions": [{"name": "tide"}]})
    assert converted["messages"] == [Q, called | {"content": None}, told]
    assert converted["tools"] == [{"type": "function", "function": {"name": "tide"}}] and "functions" not in converted
    assert name == "messages" and len(notes) == 3


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([1], ("not an object", "Write {")),
        ({}, ("no known format", "its keys: none")),
        ({"a": 1, "b": 2}, ("no known format", '"a", "b"', "Write {")),
        ({"prompt": "q"}, ("no known format", "Write {")),
        ({"messages": [Q, A], "conversations": SHAREGPT}, ("two formats", "messages", "ShareGPT", "keep")),
        ({"messages": [Q, A], "prompt": "q", "completion": "a"}, ("two formats", "prompt-completion", "keep")),
        ({"question": "q", "answer": "a"}, ('Rename "question" to "prompt", "answer" to "completion"',)),
        ({"query": "q", "response": "a", "text": "x"}, ('"query" to "prompt", "response" to "completion"',)),
        ({"prompt": "q", "response": "a"}, ('Rename "response" to "completion"',)),
        (
            {"instruction": "q", "context": "c", "response": "a"},
            ('Rename "response" to "output", "context" to "input"',),
        ),
        ({"dialog": [Q, A]}, ('Rename "dialog" to "messages"',)),
        ({"prompt": [Q], "chosen": [Q, A], "rejected": [Q, A]}, ('Rename "chosen" to "messages"',)),
        ({"data": [{"messages": [Q, A]}]}, ('under "data"', "that list alone")),
        ({"conversations": [*SHAREGPT, A]}, ("turn 2", '"from"')),
        ({"conversations": [SHAREGPT[0] | A]}, ("turn 0", '"from"')),
        ({"conversations": turns(("robot", "q"))}, ("turn 0", "'robot'", "Use one of human")),
        ({"conversations": turns(("function_call", "tide()"))}, ("turn 0", "not JSON", "Write {")),
        ({"conversations": turns(("system", "s"), ("gpt", "a")), "system": "t"}, ("keep one",)),
        ({"instruction": "q", "input": 3, "output": "a"}, ('"input" is not a string', "Write {")),
        ({"instruction": "q", "output": "a", "history": ["q"]}, ('"history"', "pairs", "Write [")),
        ({"prompt": "q", "completion": [A]}, ("both strings or both lists", "Write {")),
        ({"messages": [A | {"function_call": TIDE, "tool_calls": [CALL]}]}, ("message 0", "keep tool_calls")),
        ({"messages": [Q, A], "tools": [CALL], "functions": [TIDE]}, ('"functions"', 'write "tools"')),
        ({"text": "  "}, ('"text" is empty', "Write {")),
    ],
)
def test_what_is_ambiguous_or_unknown_is_refused_with_a_remedy(row, said):
    with pytest.raises(ConversationError) as error:
        convert(row)
    assert all(part in str(error.value) for part in said), error.value
