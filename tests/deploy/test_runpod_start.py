"""RunPod's start hook in a folder that stands for the volume."""

import json
import os
import subprocess
import sys

import pytest

from tests import ROOT

HOOK = ROOT / "deploy/runpod/pre_start.sh"
FIRST = "00_start_here.ipynb"


@pytest.fixture
def pod(tmp_path, cold):
    """A function that boots: runs the hook with the image's commands on the PATH. The volume is tmp_path/volume."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    # `jupyter trust` takes seconds, and what it does is Jupyter's matter: here it is only noted.
    trusted = f'[ "$1" = trust ] && shift && echo "$@" >>{tmp_path}/trusted.txt'
    for name, body in {"ftkit": f'exec {sys.executable} -m ftcourse.cli "$@"', "jupyter": trusted}.items():
        (bin_dir / name).write_text(f"#!/bin/sh\n{body}\n")
        (bin_dir / name).chmod(0o755)

    def boot(**variables):
        env = os.environ | {"PATH": f"{bin_dir}:{os.environ['PATH']}", "HOME": str(tmp_path / "home")}
        env |= {"PYTHONPATH": str(ROOT), "FTKIT_WORKSPACE": str(tmp_path / "volume"), "JUPYTER_PASSWORD": ""}
        env.pop("JUPYTER_CONFIG_DIR", None)
        return subprocess.run(["bash", HOOK], env=env | variables, capture_output=True, text=True, cwd="/")

    return boot


def test_the_first_start_copies_the_course_and_the_next_ones_keep_what_is_there(pod, tmp_path):
    course = tmp_path / "volume/ftkit-notebooks"
    done = pod(JUPYTER_PASSWORD="s3cret")
    assert done.returncode == 0 and done.stderr == ""
    shipped = {path.name: path.read_bytes() for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {path.name: path.read_bytes() for path in course.glob("*.ipynb")} == shipped
    assert str(course / FIRST) in (tmp_path / "trusted.txt").read_text()
    settings = json.loads((tmp_path / "home/.jupyter/jupyter_lab_config.json").read_text())
    assert settings == {"LabApp": {"default_url": f"/lab/tree{course / FIRST}"}}

    edited, deleted, own = course / FIRST, course / "12_memory.ipynb", course / "mine.ipynb"
    edited.write_text("my work")
    deleted.unlink()
    own.write_text("my own")
    (tmp_path / "home/.jupyter/jupyter_lab_config.json").write_text("{}")
    assert pod(JUPYTER_PASSWORD="s3cret").returncode == 0  # pragma: allowlist secret
    assert (edited.read_text(), own.read_text()) == ("my work", "my own")
    assert deleted.read_bytes() == shipped[deleted.name]
    assert (tmp_path / "home/.jupyter/jupyter_lab_config.json").read_text() == "{}"


def test_a_volume_that_cannot_be_written_is_said_and_does_not_end_the_pod(pod, tmp_path):
    (tmp_path / "volume").write_text("a file, where a folder should be")
    done = pod()
    assert done.returncode == 0, "RunPod's start script ends with its hook, and SSH with it"
    assert "error:" in done.stderr and "ftkit notebooks" in done.stderr


def test_the_log_says_whether_lab_starts_and_never_the_password(pod):
    assert "JUPYTER_PASSWORD is not set" in pod().stdout
    said = pod(JUPYTER_PASSWORD="s3cret")
    assert "starts on port 8888" in said.stdout and "s3cret" not in said.stdout + said.stderr
