"""The shell parts of the deployment files, as bash and the linters read them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import ROOT

SCRIPTS = ["deploy/runpod/finetune.sh", "deploy/runpod/pre_start.sh", "deploy/slurm/finetune.sbatch"]
SCRIPTS += ["binder/postBuild", ".ci/run"]
TASKS = ["deploy/skypilot/finetune.yaml", "deploy/skypilot/spot.yaml"]


def linter(name):
    """The path of a linter, beside this Python or on the PATH; without one the test is skipped."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed: pip install {name}-py (or {name}-bin)")
    return found


def sources():
    """(name, bash source) of every script, and of the blocks in SkyPilot's files."""
    for name in SCRIPTS:
        yield name, (ROOT / name).read_text()
    for name in TASKS:
        task = yaml.safe_load((ROOT / name).read_text())
        for block in ("setup", "run"):
            yield f"{name}: {block}", "#!/usr/bin/env bash\n" + task[block]


def complaints(shellcheck, source):
    command = [shellcheck, "--shell=bash", "--severity=style", "--format=gcc", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True).stdout


@pytest.mark.parametrize(("name", "source"), [pytest.param(*item, id=item[0]) for item in sources()])
def test_bash_and_shellcheck_find_nothing(name, source):
    assert subprocess.run(["bash", "-n"], input=source, capture_output=True, text=True).stderr == ""
    assert complaints(linter("shellcheck"), source) == ""


def test_shellcheck_would_find_an_unquoted_name():
    assert "SC2086" in complaints(linter("shellcheck"), '#!/bin/bash\nf="a b"\nrm $f\n')


def test_hadolint_finds_nothing_in_the_dockerfile(tmp_path):
    hadolint = linter("hadolint")
    dockerfile = ROOT / "deploy/runpod/Dockerfile"
    assert subprocess.run([hadolint, dockerfile], capture_output=True, text=True).stdout == ""
    broken = tmp_path / "Dockerfile"
    broken.write_text("FROM debian\nRUN cd /tmp\n")
    assert "DL3006" in subprocess.run([hadolint, broken], capture_output=True, text=True).stdout


def test_scripts_are_executable_where_they_are_run_by_name():
    for name in ("deploy/runpod/pre_start.sh", "deploy/runpod/finetune.sh", "binder/postBuild"):
        assert (ROOT / name).stat().st_mode & 0o111, name
