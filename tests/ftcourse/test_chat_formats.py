"""The three formats against the templates of the same models that TRL ships."""

import pytest
from trl import chat_template_utils as trl

from ftcourse.chat_formats import FORMATS, in_format
from ftkit.conversations import encode
from ftkit.loss import IGNORE_INDEX
from ftkit.models import load_tokenizer, resolve_model

QUESTION = {"role": "user", "content": "What is 2 + 3?"}
ANSWER = {"role": "assistant", "content": "5.", "reasoning_content": "3 more than 2 is 5."}
PLAIN = {"role": "assistant", "content": "5."}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "5"}
PUBLISHED = {
    "Llama 3": (trl.llama3_chat_template, [PLAIN]),
    "Qwen3 style": (trl.qwen3_chat_template, [PLAIN, ANSWER]),
}


@pytest.fixture(scope="module")
def pocket():
    return load_tokenizer(resolve_model())


def both(made, published, messages, **kwargs):
    return [
        made.apply_chat_template(messages, chat_template=template, tokenize=False, **kwargs)
        for template in (made.chat_template, published)
    ]


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_writes_what_the_published_template_writes(pocket, name):
    published, answers = PUBLISHED[name]
    made = in_format(pocket, name)
    for answer in answers:
        for messages in ([QUESTION], [QUESTION, answer], [QUESTION, answer, QUESTION], [QUESTION, answer] * 2):
            for first in ([], [{"role": "system", "content": "Be brief."}]):
                for asked in (False, True):
                    own, theirs = both(made, published, first + messages, add_generation_prompt=asked)
                    assert own == theirs


def test_a_tool_s_turns_are_written_as_published_too(pocket):
    made = in_format(pocket, "Qwen3 style")
    for messages in ([QUESTION, CALLING], [QUESTION, CALLING, RESULT], [QUESTION, CALLING, RESULT, ANSWER]):
        own, theirs = both(made, trl.qwen3_chat_template, messages)
        assert own == theirs
    own, theirs = both(made, trl.qwen3_chat_template, [QUESTION], add_generation_prompt=True, enable_thinking=False)
    assert own == theirs


def test_chatml_is_qwen_s_without_reasoning(pocket):
    made = in_format(pocket, "ChatML")
    own, theirs = both(made, trl.qwen3_chat_template, [QUESTION, PLAIN, QUESTION])
    assert own == theirs


@pytest.mark.parametrize("name", FORMATS)
def test_its_marks_are_single_tokens_and_the_last_one_ends_every_answer(pocket, name):
    made = in_format(pocket, name)
    ids = made.convert_tokens_to_ids(list(FORMATS[name].tokens))
    assert len(set(ids)) == len(ids) and min(ids) >= len(pocket)
    example = encode(made, [QUESTION, PLAIN] * 2, made.chat_template)
    labels = [label for label in example["labels"] if label != IGNORE_INDEX]
    answers = 1 if name == "Qwen3 style" else 2  # an empty <think> block is dropped from the first
    assert labels.count(ids[-1]) == answers and made.eos_token_id == ids[-1]
    assert len(pocket) < len(made)


def test_tools_are_described(pocket):
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    made = in_format(pocket, "Qwen3 style")
    assert '"name": "add"' in made.apply_chat_template([QUESTION], tools=[tool], tokenize=False)
