"""A model folder never runs code: not when asked on the terminal, by no command, and nowhere in our own source."""

import ast
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ftcourse.studies.adapters import __main__
from ftkit import load_base
from ftkit.chat import __main__ as chat
from ftkit.evaluate import generate_answers
from ftkit.finetune import export, train
from ftkit.loading import load_for_training
from ftkit.memory import __main__ as memory
from tests import ROOT

from .tiny import ragged_conversations, save_foreign

OWN = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M", "AutoTokenizer": [None, "own.T"]}
# What makes a folder need code of its own: file, and what differs there from a folder that needs none.
NEEDY = {
    "configuration": ("config.json", {"model_type": "mine", "auto_map": OWN}),
    "model": ("config.json", {"model_type": "t5", "auto_map": {"AutoModelForCausalLM": "own.M"}}),
    # An architecture that transformers knows, and for which it names no tokenizer.
    "tokenizer": ("tokenizer_config.json", {"tokenizer_class": "Mine", "auto_map": OWN}),
}


def change(file: Path, values: dict) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def with_code(folder: Path) -> Path:
    """A sound folder that also holds programs: each leaves the file `ran` when it runs. None is needed."""
    save_foreign(folder)
    (folder / "custom_generate").mkdir()
    for name in ("own.py", "custom_generate/generate.py"):
        (folder / name).write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    return folder


def needy(folder: Path, what: str) -> tuple[Path, str]:
    """A folder that cannot be loaded without its programs, and the file that says so."""
    with_code(folder)
    file, values = NEEDY[what]
    change(folder / file, values)
    if what == "tokenizer":
        change(folder / "config.json", {"model_type": "llama"})
    return folder, file


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Conversations; and whoever asks on the terminal is told yes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ragged_conversations()), encoding="utf-8")
    return path


def flags(command: str, model: Path, data: Path) -> list[str]:
    out = str(data.with_name("out"))
    return {
        "chat": [str(model), str(data), "--json"],
        "finetune": ["--model", str(model), "--data", str(data), "--output", out],
        "memory": [str(model), "--json"],
        "compare": ["--model", str(model), "--data", str(data), "--output", out],
        "export": ["checkpoint", out, "--base", str(model)],
    }[command]


MAINS = {
    "chat": chat.main,
    "finetune": train.main,
    "memory": memory.main,
    "compare": __main__.main,
    "export": export.main,
}


def refused(model: Path, file: str, said: str) -> bool:
    sentence = f"{model} needs Python code of its own (auto_map in its {file}), and ftkit never runs that:"
    return sentence in said and not (model / "ran").exists()


@pytest.mark.parametrize("what", ["configuration", "model"])
@pytest.mark.parametrize("command", MAINS)
def test_every_command_refuses_with_one_sentence(tmp_path, data, monkeypatch, capsys, command, what):
    model, file = needy(tmp_path / "model", what)
    # Else the missing checkpoint would be named first.
    monkeypatch.setattr(export, "check_undamaged", lambda path: None)
    try:
        code = MAINS[command](flags(command, model, data))
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr()
    assert refused(model, file, printed.err) and (code, printed.out) == (2, "")
    assert "trust_remote_code" not in printed.err and not data.with_name("out").exists()


@pytest.mark.parametrize("load", [load_base, load_for_training])
@pytest.mark.parametrize("what", NEEDY)
def test_both_loaders_refuse_before_a_weight_is_read(tmp_path, data, load, what):
    model, file = needy(tmp_path / "model", what)
    (model / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError) as error:
        load(model)
    assert refused(model, file, str(error.value))


def test_the_terminal_is_not_asked(tmp_path, data):
    """As a whole program, whose terminal says yes."""
    model, file = needy(tmp_path / "model", "configuration")
    command = [sys.executable, "-m", "ftkit.chat", *flags("chat", model, data)]
    done = subprocess.run(command, input="y\n" * 20, capture_output=True, text=True, encoding="utf-8")
    assert refused(model, file, done.stderr) and (done.returncode, done.stdout) == (2, "")


def test_programs_that_nobody_needs_are_left_alone(tmp_path, data, capsys):
    """As in many published folders: transformers implements the architecture by now."""
    model = with_code(tmp_path / "model")
    for file in ("config.json", "tokenizer_config.json"):
        change(model / file, {"auto_map": OWN})
    assert chat.main(flags("chat", model, data)) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    generate_answers(*load_base(model), [[{"role": "user", "content": "the cat"}]], max_new_tokens=2)
    assert not (model / "ran").exists()


def trusting(text: str) -> list[str]:
    """The loads of a Python source that do not say `trust_remote_code=False`, each by its line.

    A load is whatever is called or passed on by one of these names. PeftModel's takes no such argument: it puts
    weights on a model that is there already.
    """
    tree = ast.parse(text)
    safe = {
        id(part)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and any(k.arg == "trust_remote_code" and getattr(k.value, "value", 0) is False for k in call.keywords)
        for part in (call.func, *call.args)
    }
    return [
        f"{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if (getattr(node, "attr", "") or getattr(node, "id", "")) in ("from_pretrained", "from_config", "load_dataset")
        and ast.unparse(node) != "PeftModel.from_pretrained"
        and id(node) not in safe
    ]


def test_every_load_of_the_project_says_that_no_code_is_trusted():
    folders = ("ftkit", "ftcourse", "experiments", "notebooks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 150
    found = {str(path.relative_to(ROOT)): trusting(path.read_text(encoding="utf-8")) for path in files}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("text", "loads"),
    [
        ("AutoTokenizer.from_pretrained(x, trust_remote_code=False)", 0),
        ("partial(AutoModel.from_pretrained, x, trust_remote_code=False)", 0),
        ("PeftModel.from_pretrained(base, x)", 0),
        ("AutoTokenizer.from_pretrained(x)", 1),
        ("AutoTokenizer.from_pretrained(x, trust_remote_code=True)", 1),
        ("AutoTokenizer.from_pretrained(x, trust_remote_code=None)", 1),
        ("AutoTokenizer.from_pretrained(x, trust_remote_code=chosen)", 1),
        ("AutoTokenizer.from_pretrained(x, **options)", 1),
        ("load = AutoConfig.from_pretrained\nAutoModel.from_config(load(x))", 2),
        ("partial(AutoModel.from_pretrained, x)", 1),
        ("from datasets import load_dataset\nload_dataset('x')", 1),
    ],
)
def test_a_load_that_does_not_say_so_is_found(text, loads):
    assert len(trusting(text)) == loads


def test_the_mutation_of_the_loaders_is_found():
    text = (ROOT / "ftkit" / "models.py").read_text(encoding="utf-8")
    assert trusting(text) == []
    assert len(trusting(text.replace("trust_remote_code=False", "revision=None"))) == 4
