"""The commands that notebook 08 prints run as printed, but for their length, and are its recipe."""

import re
import shlex
import subprocess
import sys

import nbformat
import pytest

from ftkit.models import load_base

from .test_notebooks import target

NOTEBOOK = nbformat.read(target("08_full_fine_tune"), as_version=4)


def commands(program: str) -> list[list[str]]:
    """What follows `program` in the notebook's blocks of shell, split as a shell does."""
    blocks = re.findall(r"```bash\n(.*?)```", "\n".join(cell.source for cell in NOTEBOOK.cells), re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [
        words[len(program.split()) :] for line in lines if (words := shlex.split(line)) and line.startswith(program)
    ]


def run(folder, *arguments: str, said: str = "") -> str:
    command = [sys.executable, "-m", "ftcourse.cli", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, input=said, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_are_the_recipe():
    constants = {}
    source = next(cell.source for cell in NOTEBOOK.cells if "MAX_STEPS = " in cell.source)
    exec(source, {"os": __import__("os"), "Ledger": lambda topic: None}, constants)
    full, lora = commands("ftkit finetune")
    for given, lr in ((full, "LR"), (lora, "LORA_LR")):
        flags = dict(zip(given[::2], given[1::2], strict=True))
        assert float(flags["--lr"]) == constants[lr]
        assert int(flags["--max_steps"]) == constants["MAX_STEPS"]
        assert int(flags["--batch_size"]) == constants["MICRO_BATCH"] * constants["ACCUMULATION"]
        assert int(flags["--micro_batch_size"]) == constants["MICRO_BATCH"]
        assert int(flags["--max_length"]) == constants["MAX_LENGTH"]


@pytest.mark.parametrize("number", [0, 1], ids=["full", "lora"])
def test_the_commands_run(tmp_path, number):
    given = commands("ftkit finetune")[number]
    given[given.index("--max_steps") + 1] = "2"
    run(tmp_path, "finetune", *given)
    output = tmp_path / given[given.index("--output") + 1]
    model, tokenizer = load_base(output / "model")
    assert tokenizer.convert_tokens_to_ids("<|end|>") in model.generation_config.eos_token_id
    if number == 0:
        [talk] = commands("ftkit chat-with")
        assert "> " in run(tmp_path, "chat-with", *talk, "--max_new_tokens", "3", said="Hello\n\n")
    else:
        [merge] = commands("ftkit merge")
        assert "merged: logits differ" in run(tmp_path, "merge", *merge)
        assert (tmp_path / merge[1] / "model.safetensors").exists()
