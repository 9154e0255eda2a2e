"""Reading and encoding conversations: what is wrong is named with its line, and the loss mask is exact."""

import json

import pytest

from ftkit.conversations import (
    ChatTemplateError,
    ConversationError,
    encode,
    encode_text,
    read_conversations,
    training_template,
)
from ftkit.loss import IGNORE_INDEX
from ftkit.models import load_base
from tests.tiny import CHATML, foreign_tokenizer, ragged_conversations

GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_good_lines_blank_lines_and_other_keys_are_read(tmp_path):
    rows = [GOOD, {**GOOD, "source": "x"}, *ragged_conversations()]
    path = write(tmp_path / "a.jsonl", rows[0], "", *rows[1:], "")
    assert read_conversations(path) == rows


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"messages": [', "not JSON"),
        ('"text"', 'lacks "messages"'),
        ({"prompt": "x"}, 'lacks "messages"'),
        ({"messages": []}, "empty"),
        ({"messages": "hello"}, "not a list"),
        ({"messages": ["hello"]}, "not an object"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "unknown role 'bot'"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no assistant turn"),
        ({"messages": [*GOOD["messages"], {"role": "system", "content": "x"}]}, "Move it to the front"),
        ({"messages": [{"role": "assistant", "content": None}]}, "no text"),
        ({"messages": [{"role": "assistant", "content": [{"type": "image"}]}]}, "no text"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_remedy(tmp_path, line, said):
    path = write(tmp_path / "bad.jsonl", GOOD, line, GOOD)
    with pytest.raises(ConversationError, match=r"bad\.jsonl:2: ") as error:
        read_conversations(path)
    assert said in str(error.value)
    remedies = ("Write {", "Use one of", "Add {", "Move it", "Give it")
    assert any(remedy in str(error.value) for remedy in remedies)


def test_many_bad_lines_are_counted(tmp_path):
    with pytest.raises(ConversationError, match="and 4 more bad lines") as error:
        read_conversations(write(tmp_path / "b.jsonl", *["nope"] * 9))
    assert str(error.value).count("not JSON") == 5


def test_missing_empty_and_binary_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no data file"):
        read_conversations(tmp_path / "none.jsonl")
    with pytest.raises(ConversationError, match="no conversations"):
        read_conversations(write(tmp_path / "empty.jsonl", ""))
    (tmp_path / "latin.jsonl").write_bytes('{"messages": "é"}'.encode("latin-1"))
    with pytest.raises(ConversationError, match="UTF-8"):
        read_conversations(tmp_path / "latin.jsonl")


@pytest.mark.parametrize("load", [lambda: load_base()[1], foreign_tokenizer], ids=["pocket", "foreign"])
def test_unmasked_tokens_are_the_answers_and_their_ends(load):
    tokenizer = load()
    template = training_template(tokenizer)
    for row in ragged_conversations():
        example = encode(tokenizer, row["messages"], template)
        rendered = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        assert tokenizer.decode(example["input_ids"]) == rendered
        learnt = tokenizer.decode([label for label in example["labels"] if label != IGNORE_INDEX])
        end = "<|end|>" if "<|end|>" in tokenizer.get_vocab() else "<|im_end|>"
        answers = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
        assert learnt == "".join(answer + end for answer in answers)


def test_truncation_that_leaves_nothing_to_learn_is_refused():
    tokenizer = foreign_tokenizer()
    messages = ragged_conversations()[8]["messages"]
    whole = encode(tokenizer, messages, CHATML)
    cut = encode(tokenizer, messages, CHATML, max_length=len(whole["input_ids"]) - 2)
    assert cut["input_ids"] == whole["input_ids"][:-2]
    with pytest.raises(ConversationError, match="raise max_length"):
        encode(tokenizer, messages, CHATML, max_length=3)


def test_templates_missing_unmarked_and_known_to_trl():
    import trl.chat_template_utils as known

    tokenizer = load_base()[1]
    tokenizer.chat_template = None
    with pytest.raises(ChatTemplateError, match="has no chat template"):
        training_template(tokenizer)
    tokenizer.chat_template = {"rag": "{{ messages }}", "tool_use": "{{ messages }}"}
    with pytest.raises(ChatTemplateError, match="rag, tool_use, and none is named default"):
        training_template(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert training_template(tokenizer) == tokenizer.chat_template
    tokenizer.chat_template = known.qwen3_chat_template
    assert training_template(tokenizer) == known.qwen3_training_chat_template


def test_plain_text_learns_all_but_its_first_token():
    tokenizer = load_base()[1]
    example = encode_text(tokenizer, "The capital of France is Paris.")
    assert example["labels"] == [IGNORE_INDEX, *example["input_ids"][1:]]
    assert tokenizer.decode(example["input_ids"][1:]) == "The capital of France is Paris."
