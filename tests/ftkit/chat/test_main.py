"""The command: a report or JSON, an exit code, and a clear word about what cannot be read."""

import json
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

from ftkit.chat.__main__ import main
from ftkit.conversations import encode
from ftkit.models import data_dir
from tests.tiny import foreign_tokenizer, ragged_conversations, save_foreign

from .cases import CHATML

CLOSES_OUTSIDE = CHATML.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")


@pytest.fixture
def model(tmp_path):
    return save_foreign(tmp_path / "model")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ragged_conversations()), encoding="utf-8")
    return path


def test_a_sound_folder_passes(model, data, capsys):
    assert main([str(model), str(data)]) == 0
    out = capsys.readouterr().out
    assert "11 conversations" in out.splitlines()[0]
    assert out.splitlines()[-1] == "0 errors, 0 warnings, 0 notes"


def test_errors_show_in_exit_code_report_and_json(model, data, capsys):
    (model / "chat_template.jinja").write_text(CLOSES_OUTSIDE, encoding="utf-8")
    assert main([str(model), str(data)]) == 1
    assert "error: stop-not-in-loss" in capsys.readouterr().out
    assert main([str(model), str(data), "--json"]) == 1
    record = json.loads(capsys.readouterr().out)
    assert (record["ok"], record["rows"], record["format"]) == (False, 11, "messages")
    assert [f["code"] for f in record["findings"]] == ["stop-not-in-loss", "stop-not-in-labels"]


def test_findings_can_be_allowed(model, data, capsys):
    (model / "chat_template.jinja").write_text(CLOSES_OUTSIDE, encoding="utf-8")
    codes = ["stop-not-in-loss", "stop-not-in-labels"]
    assert main([str(model), str(data), "--allow", codes[0]]) == 1
    assert main([str(model), str(data), "--allow", *codes]) == 0
    assert capsys.readouterr().out.endswith("0 errors, 0 warnings, 2 notes\n")
    assert main([str(model), str(data), "--allow", "stop-not-in-los"]) == 2
    assert "did you mean stop-not-in-loss" in capsys.readouterr().err


def test_the_mask_of_chosen_examples_is_shown(model, data, capsys):
    assert main([str(model), str(data), "--show-mask", "2"]) == 0
    out = capsys.readouterr().out
    assert f"example 2, {data}:2" in out and "[assistant, in loss]" in out
    assert main([str(model), str(data), "--show-mask", "99"]) == 2
    assert "examples 1 to 11" in capsys.readouterr().err


def test_lengths_and_the_share_that_is_truncated(model, data, capsys):
    lengths = [len(encode(foreign_tokenizer(), row["messages"], CHATML)["input_ids"]) for row in ragged_conversations()]
    limit = sorted(lengths)[-2]
    assert main([str(model), str(data), "--max_length", str(limit)]) == 0
    out = capsys.readouterr().out
    over = 100 * sum(length > limit for length in lengths) / len(lengths)
    assert f"longest {max(lengths)}; {over:.1f} % of the examples are truncated at {limit}" in out
    main([str(model), str(data), "--json"])
    assert json.loads(capsys.readouterr().out)["lengths"]["median"] == sorted(lengths)[5]


def test_a_missing_weight_is_an_error(model, data, capsys):
    tensors = load_file(model / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "up_proj" not in k}, model / "model.safetensors", {"format": "pt"})
    assert main([str(model), str(data)]) == 1
    assert "error: weights-missing" in capsys.readouterr().out


def test_warnings_alone_pass(data, tmp_path, capsys):
    made = foreign_tokenizer()
    folder = save_foreign(tmp_path / "other")
    (folder / "chat_template.jinja").write_text(
        CHATML.replace("{{ m.content }}<|im_end|>{% end", "{{ m.content | trim }}<|im_end|>{% end")
    )
    assert main([str(folder), str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert made.chat_template == CHATML


def test_max_length_is_the_trainings(model, data, capsys):
    assert main([str(model), str(data), "--max_length", "5"]) == 1
    assert "all-labels-masked" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main([str(model), str(data), "--max_length", "0"])
    assert stopped.value.code == 2


def bad_data(tmp_path, name):
    path = tmp_path / f"{name}.jsonl"
    contents = {
        "empty": b"",
        "blank": b"\n\n",
        "latin": '{"messages": "é"}'.encode("latin-1"),
        "binary": bytes(range(256)),
        "questions": b'{"question": "Hi", "answer": "Hello."}\n',
    }
    if name in contents:
        path.write_bytes(contents[name])
    elif name == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "no data file"),
        ("folder", "no data file"),
        ("empty", "no conversations"),
        ("blank", "no conversations"),
        ("latin", "UTF-8"),
        ("binary", "UTF-8"),
        ("questions", "question"),
    ],
)
def test_unreadable_data_are_named_with_a_remedy(model, tmp_path, capsys, name, said):
    path = bad_data(tmp_path, name)
    assert main([str(model), str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert str(path) in printed.err
    assert said in printed.err


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be opened as a model"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\xe9"), "cannot be opened as a model"),
        (lambda folder: (folder / "model.safetensors").unlink(), "safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "cannot be opened as a model"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be opened as a model"),
        (lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xe9"), "cannot be opened as a model"),
    ],
    ids=[
        "no config",
        "bad config",
        "config in latin",
        "no weights",
        "cut weights",
        "bad tokenizer",
        "latin template",
    ],
)
def test_unreadable_models_are_named_with_a_remedy(model, data, capsys, damage, said):
    damage(model)
    assert main([str(model), str(data)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert str(model) in printed.err
    assert said in printed.err


def test_no_such_model(data, tmp_path, capsys):
    assert main([str(tmp_path / "nowhere"), str(data)]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_it_runs_as_a_program_on_pocket_base():
    arguments = [str(data_dir() / "pocket-base"), str(data_dir() / "chat" / "test.jsonl"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "ftkit.chat", *arguments], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    # What its card and the lessons say of it: chat tokens never trained, EOS that ends a page and not a turn.
    assert [f["code"] for f in record["findings"]] == [
        "bos-doubled",
        "turn-end-is-not-eos",
        "untrained-token",
    ]
