"""The almanac's sets by name, a user's own files, and ragged conversations."""

import json

import pytest

from ftcourse.studies.adapters.data import digest, load_conversations
from ftkit.loss import IGNORE_INDEX
from tests.tiny import foreign_tokenizer


@pytest.fixture
def tokenizer():
    return foreign_tokenizer()


def turn(role, content):
    return {"role": role, "content": content}


def write(path, *conversations):
    path.write_text("".join(json.dumps({"messages": c}) + "\n" for c in conversations), encoding="utf-8")
    return str(path)


def qa(i):
    return [turn("user", f"Q{i}"), turn("assistant", f"A{i}")]


@pytest.mark.parametrize("name", ["chat-24", "calls-24"])
def test_the_almanac_s_sets(tokenizer, name):
    data = load_conversations(name, tokenizer, 0)
    assert len(data.train) == 24 and data.epochs == 10
    assert len(data.test) == len(data.prompts) == len(data.references) > 20
    assert all(prompt[-1]["role"] == "user" for prompt in data.prompts)
    assert data != load_conversations(name, tokenizer, 1)
    assert digest(name) == ""


def test_one_file_is_split_by_the_seed(tmp_path, tokenizer):
    path = write(tmp_path / "mine.jsonl", *map(qa, range(20)))
    data = load_conversations(path, tokenizer, 0)
    assert (len(data.train), len(data.test)) == (18, 2)
    seen = [tokenizer.decode(row["input_ids"]) for row in data.train]
    assert not [ref for ref in data.references if any(f"{ref}<|im_end|>" in text for text in seen)]
    others = {tuple(load_conversations(path, tokenizer, seed).references) for seed in range(5)}
    assert len(others) > 1


def test_a_folder_s_test_split_is_taken(tmp_path, tokenizer):
    write(tmp_path / "train.jsonl", *map(qa, range(5)))
    write(tmp_path / "test.jsonl", qa(77))
    assert load_conversations(str(tmp_path), tokenizer, 0).references == ["A77"]


def test_the_last_answer_is_judged_and_what_follows_it_left_out(tmp_path, tokenizer):
    long = [turn("system", "Be brief."), *qa(1), *qa(2), turn("user", "Thanks!")]
    write(tmp_path / "train.jsonl", qa(0))
    write(tmp_path / "test.jsonl", long, [turn("assistant", "I begin."), turn("user", "Do you?")])
    data = load_conversations(str(tmp_path), tokenizer, 0)
    assert data.references == ["A2"] and data.prompts == [long[:4]]
    assert "Thanks" not in tokenizer.decode(data.test[0]["input_ids"])


def test_tool_calls_are_compared_as_the_template_writes_them(tmp_path, tokenizer):
    call = {"name": "legs_of", "arguments": {"animal": "cat"}}
    asked = [
        turn("user", "Legs?"),
        {"role": "assistant", "content": None, "tool_calls": [{"function": call}]},
    ]
    write(tmp_path / "train.jsonl", qa(0))
    write(tmp_path / "test.jsonl", asked)
    with_calls = tokenizer.chat_template.replace(
        "{{ m.content }}<|im_end|>{% endgeneration",
        "{{ m.content or m.tool_calls[0].function | tojson }}<|im_end|>{% endgeneration",
    )
    assert with_calls != tokenizer.chat_template
    before, tokenizer.chat_template = tokenizer.chat_template, with_calls
    try:
        data = load_conversations(str(tmp_path), tokenizer, 0)
    finally:
        tokenizer.chat_template = before
    assert [json.loads(text) for text in data.references] == [call]
    assert any(label != IGNORE_INDEX for label in data.test[0]["labels"])


def test_what_cannot_be_compared_on_is_named(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="has one conversation: at least two"):
        load_conversations(write(tmp_path / "one.jsonl", qa(0)), tokenizer, 0)
    (tmp_path / "only_test").mkdir()
    write(tmp_path / "only_test" / "test.jsonl", qa(0))
    with pytest.raises(ValueError, match=r"has no train\.jsonl: it has test\.jsonl"):
        load_conversations(str(tmp_path / "only_test"), tokenizer, 0)
    with pytest.raises(FileNotFoundError, match="no data file at"):
        load_conversations(str(tmp_path / "absent.jsonl"), tokenizer, 0)
    with pytest.raises(ValueError, match="between 1 and"):
        load_conversations("calls-9999", tokenizer, 0)
    (tmp_path / "no_answer.jsonl").write_text(
        "".join(json.dumps({"messages": [turn("assistant", "Hello.")]}) + "\n" for _ in range(3))
    )
    with pytest.raises(ValueError, match="no conversation to test on"):
        load_conversations(str(tmp_path / "no_answer.jsonl"), tokenizer, 0)


def test_the_digest_is_of_what_the_files_say(tmp_path):
    path = write(tmp_path / "mine.jsonl", qa(0), qa(1))
    before = digest(path)
    assert len(before) == 12 and digest(path) == before
    write(tmp_path / "mine.jsonl", qa(0), qa(2))
    assert digest(path) != before
