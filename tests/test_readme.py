"""The README tells the truth: its examples run, its links, targets, flags and tree name what is there."""

import dataclasses
import os
import re
import subprocess
import sys

import pytest

from ftcourse.claims import read_claims
from ftkit.finetune.config import Config
from tests import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
README = PAGES[0].read_text(encoding="utf-8")
LINES_OF_AN_EXAMPLE = 5  # imports included


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def targets(makefile):
    return set(re.findall(r"^([a-z]+):", makefile, re.M))


def missing_targets(text):
    code = "\n".join(re.findall(r"`([^`\n]+)`", text) + blocks(text, "bash"))
    return set(re.findall(r"\bmake ([a-z]+)", code)) - targets((ROOT / "Makefile").read_text())


def dead_links(text, folder=ROOT):
    found = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    return [target for target in found if not (folder / target).exists()]


def absent_from_tree(text):
    (tree,) = blocks(text, "text")
    named = re.findall(r"^\S+", tree, re.M) + re.findall(r"\bftkit/[\w/.]*\w", tree)
    return [name for name in named if not (ROOT / name).exists()]


def unknown_flags(text):
    """Flags given to ftkit.finetune in a shell block that it does not have."""
    commands = re.sub(r"\\\n", " ", "\n".join(blocks(text, "bash"))).splitlines()
    ours = [line.partition("ftkit.finetune")[2] for line in commands if "-m ftkit.finetune" in line]
    given = {flag for line in ours for flag in re.findall(r"--(\w+)", line)}
    assert given, "the README shows no flag of ftkit.finetune"
    return given - {field.name for field in dataclasses.fields(Config)}


def run_examples(text, folder):
    env = {name: value for name, value in os.environ.items() if not name.startswith("FTKIT_")}
    env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", "\n".join(blocks(text, "python"))]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_examples_run_one_after_the_other_in_a_fresh_process(tmp_path):
    done = run_examples(README, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sharded" / "model" / "config.json").exists()


def test_the_example_of_a_claim_runs(tmp_path):
    done = run_examples(PAGES[1].read_text(encoding="utf-8"), tmp_path)
    assert len(read_claims(done.stdout)) == 1, done.stderr


def test_examples_are_short():
    for block in blocks(README, "python"):
        lines = [line for line in block.splitlines() if line]
        assert len(lines) <= LINES_OF_AN_EXAMPLE, block


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_make_targets_exist(page):
    text = page.read_text(encoding="utf-8")
    assert dead_links(text) == []
    assert missing_targets(text) == set()


def test_tree_names_only_what_is_there_and_every_folder():
    assert absent_from_tree(README) == []
    (tree,) = blocks(README, "text")
    for folder in ("ftkit", "ftkit/child_tuning", "ftkit/distributed", "ftkit/checks", "notebooks", "tests"):
        assert f"{folder}/ " in tree


def test_flags_exist():
    assert unknown_flags(README) == set()


def test_each_check_is_red_for_its_mutation(tmp_path):
    assert dead_links("[gone](nowhere.md) [there](README.md) [far](https://example.org)") == ["nowhere.md"]
    assert missing_targets("`make hay` and `make lab`, make sense") == {"hay"}
    assert missing_targets("```bash\nmake hay  # x\n```\n") == {"hay"}
    assert (
        absent_from_tree("```text\nftkit/   a\nftkit/nothing.py   b, ftkit/models.py\n```\n")
        == ["ftkit/nothing.py"] * 2
    )
    assert unknown_flags("```bash\npython -m ftkit.finetune --output a --speed 2\n```\n") == {"speed"}
    assert run_examples("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n", tmp_path).returncode == 1
