"""The launch lines of notebook 16 are safe, fit, and start as written, but for size: one of them runs."""

import ast
import os
import re
import subprocess
import sys

import nbformat
import pytest

from ftcourse.launch_lines import find_risks, launch_lines_of, memory_plan, read_launch_line, rehearsal
from ftcourse.studies import launch_plans
from ftkit.finetune.config import parse_config, validate
from ftkit.models import load_base

from .test_notebooks import target

NOTEBOOK = nbformat.read(target("16_fsdp_fine_tune"), as_version=4)
CODE = [cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code"]
TOKENS = 700  # of a conversation, as in the notebook's JOB
RUN = "8B, 8 GPUs, LoRA"  # the line that is run


def texts() -> list[str]:
    """Every string in the notebook's code."""
    nodes = [
        node for source in CODE if "launch" in source or "torchrun" in source for node in ast.walk(ast.parse(source))
    ]
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


LINES = {name: line for text in texts() for name, line in launch_lines_of(text).items()}
LINES |= {text[:40]: text for text in texts() if text.startswith("sbatch")}
WHOLE = [text for text in texts() if text.startswith("torchrun") and "--model" in text]  # not in a list of lines
(EARLIER,) = [text for text in WHOLE if "--lr" not in text]
OTHERS = [text for text in WHOLE if text != EARLIER]


def test_the_notebook_has_its_lines():
    assert len(LINES) == 8 and RUN in LINES and f"tokens={TOKENS}" in "".join(CODE)
    assert sum("sbatch" in line for line in LINES.values()) == 2


@pytest.mark.parametrize("name", LINES)
def test_a_line_is_safe_and_fits(name):
    line = read_launch_line(LINES[name])
    assert find_risks(line) == [] and line.max_restarts >= 3
    model = launch_plans.LARGE if name.startswith("70B") else launch_plans.SMALL
    recorded = launch_plans.read_plans()[launch_plans.name_of(memory_plan(line, TOKENS), model)]
    assert launch_plans.fits(recorded["peak"])


@pytest.mark.parametrize("name", LINES)
def test_the_program_accepts_every_flag_of_a_line(name, tmp_path, monkeypatch):
    line = read_launch_line(LINES[name])
    flags = rehearsal(line, str(tmp_path / "run"))
    assert {flag[2:] for flag in flags if flag.startswith("--")} >= line.given - {"model", "data"}
    monkeypatch.setenv("WORLD_SIZE", "2")
    validate(parse_config(flags))
    with pytest.raises(ValueError, match="unknown"):
        validate(parse_config([*flags, "--unknown", "1"]))


def test_lines_for_other_gpus_are_safe():
    lines = [read_launch_line(text) for text in OTHERS]
    assert [find_risks(line) for line in lines] == [[], []]
    assert [(line.nodes, line.gpus, str(line.dims)) for line in lines] == [(1, 4, "1,4,1"), (2, 16, "2,8,1")]


def test_the_earlier_line_is_a_risk():
    risks = find_risks(read_launch_line(EARLIER))
    assert [risk.split(":")[0] for risk in risks] == ["no --lr", "no --save_every"]


def test_a_line_runs_with_its_launcher(tmp_path):
    text = LINES[RUN].replace("\\\n", " ")
    launcher = re.fullmatch(r"torchrun (.*) -m ftkit\.finetune .*", text)[1].replace("-node 8", "-node 2").split()
    flags = rehearsal(read_launch_line(LINES[RUN]), "run", lr=1e-3)
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "ftkit.finetune", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "run/checkpoints/step-000004").is_dir()
    assert "0 of" in re.search(r"merged: .* greedy tokens differ", done.stdout)[0]
    load_base(tmp_path / "run/model")
    [talk] = re.findall(r"`ftkit (chat-with) runs/\w+/model`", "".join(cell.source for cell in NOTEBOOK.cells))
    command = [sys.executable, "-m", "ftcourse.cli", talk, "run/model", "--max_new_tokens", "3"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, input="Hello\n\n")
    assert said.returncode == 0 and "> " in said.stdout
