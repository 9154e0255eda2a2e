"""What a run reads: every format, checked as `ftkit chat` checks it, with the labels that will be trained on."""

import json

import pytest

from ftkit.conversations import encode
from ftkit.finetune import train
from ftkit.finetune.config import Config, validate
from ftkit.finetune.data import read_training_data
from ftkit.loss import IGNORE_INDEX
from ftkit.models import load_tokenizer
from tests.tiny import CHATML, foreign_tokenizer, ragged_conversations, save_foreign

UNMARKED = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
Q, A = "the cat", "sat on two mats"
MESSAGES = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_foreign(tmp_path_factory.mktemp("data") / "qwen", layers=1)


def read(model, path, rows, **settings):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    config = Config(output=str(path.parent / "out"), model=str(model), data=str(path), batch_size=1, **settings)
    return read_training_data(validate(config))


def learnt(data) -> list[str]:
    """The text in the loss of each example."""
    kept = ([label for label in row["labels"] if label != IGNORE_INDEX] for row in data.train)
    return [data.tokenizer.decode(labels) for labels in kept]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": MESSAGES}, "messages"),
        ({"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]}, "ShareGPT"),
        ({"instruction": Q, "output": A}, "Alpaca"),
        ({"prompt": Q, "completion": A}, "prompt-completion"),
        ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, "prompt-completion"),
    ],
)
def test_every_format_trains_on_the_answer(model, tmp_path, capsys, row, name):
    data = read(model, tmp_path / "rows.jsonl", [row])
    assert learnt(data) == [f"{A}<|im_end|>"]
    out = capsys.readouterr().out
    assert f"rows.jsonl: 1 examples ({name})" in out
    assert f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n⟦{A}<|im_end|>⟧" in out


def test_plain_text_trains_on_all_of_it_and_on_its_end(model, tmp_path):
    data = read(model, tmp_path / "rows.jsonl", [{"text": "the cat sat"}])
    tokens = foreign_tokenizer().encode("the cat sat<|im_end|>")
    assert data.train == [{"input_ids": tokens, "labels": [IGNORE_INDEX, *tokens[1:]]}]


def test_a_template_without_markers_trains_on_the_same_tokens(model, tmp_path):
    (template := tmp_path / "own.jinja").write_text(UNMARKED)
    derived = read(model, tmp_path / "a.jsonl", ragged_conversations(), chat_template=str(template))
    marked = read(model, tmp_path / "b.jsonl", ragged_conversations())
    # The markers of CHATML eat the line break after the end of a turn.
    strip = [text.replace("<|im_end|>\n", "<|im_end|>") for text in learnt(derived)]
    assert strip == learnt(marked) and strip != learnt(derived)


def test_messages_with_weight_zero_are_read_and_not_trained_on(model, tmp_path):
    wrong = [MESSAGES[0], MESSAGES[1] | {"content": "wrong", "weight": 0}, *MESSAGES]
    data = read(model, tmp_path / "rows.jsonl", [{"messages": wrong}])
    assert learnt(data) == [f"{A}<|im_end|>"]
    assert "wrong" in data.tokenizer.decode(data.train[0]["input_ids"])


def test_tools_and_template_arguments_reach_the_template_or_are_refused(model, tmp_path):
    row = {"messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "count_owls", "parameters": {}}}]}
    with pytest.raises(ValueError, match=r"the tool 'count_owls' of tools is not written \(text-lost\)"):
        read(model, tmp_path / "rows.jsonl", [row])
    source = "{% if tools %}{{ tools | tojson }}{% endif %}{{ 'loud' if loud }}" + CHATML
    (template := tmp_path / "tools.jinja").write_text(source)
    row["chat_template_kwargs"] = {"loud": True}
    data = read(model, tmp_path / "rows.jsonl", [row], chat_template=str(template))
    whole = encode(data.tokenizer, MESSAGES, source, tools=row["tools"], chat_template_kwargs={"loud": True})
    text = data.tokenizer.decode(data.train[0]["input_ids"])
    assert data.train == [whole] and "count_owls" in text and "loud" in text


def test_an_error_of_the_checks_can_be_allowed_by_name(model, tmp_path, capsys):
    (template := tmp_path / "endless.jinja").write_text(CHATML.replace("<|im_end|>{% endgen", "{% endgen"))
    rows = [{"messages": MESSAGES}]
    with pytest.raises(ValueError, match="give --allow stop-not-in-labels"):
        read(model, tmp_path / "rows.jsonl", rows, chat_template=str(template))
    with pytest.raises(ValueError, match="did you mean stop-not-in-labels"):
        read(model, tmp_path / "rows.jsonl", rows, chat_template=str(template), allow="stop-not-in-label")
    data = read(model, tmp_path / "rows.jsonl", rows, chat_template=str(template), allow="stop-not-in-labels")
    assert learnt(data) == [A]


def test_rows_without_labels_can_be_allowed_unless_all_are(model, tmp_path):
    mute = {"messages": [*MESSAGES[:1], {**MESSAGES[1], "weight": 0}]}
    data = read(model, tmp_path / "rows.jsonl", [mute, {"messages": MESSAGES}], allow="all-labels-masked")
    assert [bool(text) for text in learnt(data)] == [False, True]
    with pytest.raises(ValueError, match=r"rows.jsonl: every label of every example is -100"):
        read(model, tmp_path / "rows.jsonl", [mute, mute], allow="all-labels-masked")


def test_more_tokens_than_the_model_has_positions_are_refused(model, tmp_path):
    long = [{"messages": [MESSAGES[0], {"role": "assistant", "content": "the cat " * 80}]}]
    with pytest.raises(ValueError, match="more than 128 tokens"):
        read(model, tmp_path / "rows.jsonl", long)
    assert len(read(model, tmp_path / "rows.jsonl", long, max_length=128).train[0]["labels"]) == 128


def test_the_template_given_is_exported(model, tmp_path, no_estimates):
    (template := tmp_path / "own.jinja").write_text("{# mine #}" + CHATML)
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ragged_conversations()))
    settings = {"model": model, "data": tmp_path / "rows.jsonl", "output": tmp_path / "out", "max_steps": 1}
    words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    train.main([*words, "--chat_template", str(template)])
    assert load_tokenizer(tmp_path / "out" / "model").chat_template == "{# mine #}" + CHATML


@pytest.mark.parametrize(("content", "said"), [(None, "no file at"), (b"\xff\xfe", "is not UTF-8")])
def test_a_template_file_that_cannot_be_read_is_named(model, tmp_path, content, said):
    path = tmp_path / "own.jinja"
    if content:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=f"--chat_template: .*{said}"):
        read(model, tmp_path / "rows.jsonl", [{"messages": MESSAGES}], chat_template=str(path))
