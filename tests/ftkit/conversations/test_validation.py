"""What is wrong with a conversation, and what to write instead."""

import pytest

from ftkit.conversations import find_problem

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
CALL = {"type": "function", "function": {"name": "tide", "arguments": {"harbour": "north"}}}


@pytest.mark.parametrize(
    "messages",
    [
        [USER, ANSWER],
        [USER, ANSWER, USER],  # what an example without a last answer costs is another part's concern
        [{"role": "system", "content": ""}, USER, ANSWER | {"weight": 0, "train": False}],
        [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "high"}],
        [USER, {"role": "assistant", "tool_calls": [CALL["function"]]}],
        [USER, ANSWER | {"tool_calls": None}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": ""}]}, ANSWER],
    ],
)
def test_conversations_without_a_problem(messages):
    assert find_problem({"messages": messages, "tools": [CALL], "chat_template_kwargs": {}}) is None


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], ("empty", "Write {")),
        ("hello", ("not a list", "Write {")),
        (["hello"], ("message 0 is not an object", "Write {")),
        ([{"role": "robot", "content": "x"}], ("message 0", "unknown role 'robot'", "Use one of system")),
        ([USER, {"role": "gpt", "content": "x"}], ("message 1", "unknown role 'gpt'", "Use assistant")),
        ([{"role": "human", "content": "x"}], ("unknown role 'human'", "Use user")),
        ([{"role": ["user"], "content": "x"}], ("unknown role ['user']", "Use one of")),
        ([USER], ("no assistant turn", "Add {")),
        ([USER, ANSWER, {"role": "system", "content": "x"}], ("message 2", "Move it to the front")),
        ([{"role": "assistant", "content": None}], ("no text", "Give it")),
        ([{"role": "assistant", "content": []}], ("no text", "Give it")),
        ([{"role": "assistant", "content": 3, "tool_calls": [CALL]}], ("no text", "Give it")),
        ([{"role": "user", "content": [{"type": "image"}]}], ("'image'", "text only", "Use {")),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], ("block without text", "Give it")),
        ([{"role": "user", "content": ["a"]}], ("without a type", "Use {")),
        ([ANSWER | {"tool_calls": "tide()"}], ("not a list", "Write [{")),
        ([ANSWER | {"tool_calls": ["tide"]}], ("number 0", "no name", "Write {")),
        ([ANSWER | {"tool_calls": [CALL, {"function": {"name": 5}}]}], ("number 1", "no name", "Write {")),
        ([ANSWER | {"tool_calls": [{"function": {"arguments": "{}"}}]}], ("no name", "Write {")),
    ],
)
def test_a_problem_is_named_with_its_message_and_remedy(messages, said):
    problem = find_problem({"messages": messages})
    assert all(part in problem for part in said), problem


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("text", 'lacks "messages"'),
        ({"messages": [USER, ANSWER], "tools": {"name": "tide"}}, '"tools" is not a list'),
        ({"messages": [USER, ANSWER], "tools": ["tide"]}, '"tools" is not a list of objects'),
        ({"messages": [USER, ANSWER], "chat_template_kwargs": [1]}, '"chat_template_kwargs" is not an object'),
    ],
)
def test_a_problem_of_the_row(row, said):
    assert said in find_problem(row)
