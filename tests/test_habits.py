"""What `make lint` looks for beside ruff is found: misspelt words, and keys and passwords of known forms."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
KEY = "AKIA" + "ABCDEFGHIJKLMNOP"  # in two parts, or this file would be one that has a key


def run(*command):
    if not shutil.which("codespell" if command[0] == "codespell" else "detect-secrets-hook", path=PATH):
        pytest.skip(f"{command[0]} is not installed: pip install -e '.[test]'")
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"PATH": PATH}, capture_output=True, text=True)


def test_a_misspelt_word_is_found_in_a_page(tmp_path):
    (tmp_path / "a.md").write_text("The {} model.\n".format("".join("the"[i] for i in (0, 2, 1))))
    (tmp_path / "b.md").write_text("The model of Joo et al.\n")
    done = run("codespell", str(tmp_path))
    assert done.returncode and "a.md:1" in done.stdout and "b.md" not in done.stdout


def test_a_key_is_found_and_a_hash_is_not(tmp_path):
    lines = {
        "key.py": f"key = '{KEY}'",
        "private.py": "-----BEGIN " + "RSA PRIVATE KEY-----",
        "address.py": "https://user:" + "hunter2@example.org",
        "hash.json": '{"sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"}',
        "name.py": "token = os.environ['HF_TOKEN']",
    }
    for name, line in lines.items():
        (tmp_path / name).write_text(line + "\n")
    done = run(".ci/secrets", *(str(tmp_path / name) for name in lines))
    assert done.returncode
    assert {name for name in lines if f"{name}:1" in done.stdout} == {"key.py", "private.py", "address.py"}
