"""RunPod's start hook in a folder that stands for the volume; with `make deploy` the whole start script around it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

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
    done = pod()
    assert done.returncode == 0 and done.stderr == ""
    shipped = {path.name: path.read_bytes() for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {path.name: path.read_bytes() for path in course.iterdir()} == shipped
    assert str(course / FIRST) in (tmp_path / "trusted.txt").read_text()
    settings = json.loads((tmp_path / "home/.jupyter/jupyter_lab_config.json").read_text())
    assert settings == {"LabApp": {"default_url": f"/lab/tree{course / FIRST}"}}

    edited, deleted, own = course / FIRST, course / "12_memory.ipynb", course / "mine.ipynb"
    edited.write_text("my work")
    deleted.unlink()
    own.write_text("my own")
    (tmp_path / "home/.jupyter/jupyter_lab_config.json").write_text("{}")
    assert pod().returncode == 0
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


# RunPod's start script, as far as JupyterLab is concerned, by its documented behaviour: the hook runs first, and Lab only
# where there is a password, which is its token. FTKIT_RUNPOD_START names their own script, which is used in its place.
START = """\
[ -f /pre_start.sh ] && bash /pre_start.sh
if [ -n "$JUPYTER_PASSWORD" ]; then
    cd / && python -m jupyter lab --allow-root --no-browser --port=8888 --ip=* \
        --IdentityProvider.token="$JUPYTER_PASSWORD" --ServerApp.preferred_dir=/workspace >/tmp/jupyter.log 2>&1 &
fi
sleep infinity
"""
LAB = "http://127.0.0.1:8888"


def answer(path):
    """HTTP status, or None where nobody listens."""
    try:
        return urllib.request.urlopen(LAB + path, timeout=5).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def inside(password):
    """What the machine's own processes see of Lab: run in its namespaces by `python -m`; prints one line of JSON."""
    with socket.socket() as probe:
        listens = probe.connect_ex(("127.0.0.1", 8888)) == 0
    deadline = time.monotonic() + (40 if password else 5)
    while not listens and time.monotonic() < deadline:
        time.sleep(0.2)
        with socket.socket() as probe:
            listens = probe.connect_ex(("127.0.0.1", 8888)) == 0
    found = {"listens": listens}
    if listens:
        found |= {"without": answer("/api/contents"), "wrong": answer("/api/contents?token=guess")}
        found["with"] = answer(f"/api/contents?token={password}")
        with urllib.request.urlopen(f"{LAB}/?token={password}", timeout=10) as page:
            found["opens"] = page.url.partition("?")[0].removeprefix(LAB)
    print(json.dumps(found))


@pytest.mark.deploy
@pytest.mark.parametrize("password", ["", "s3cret"])
def test_the_start_script_in_namespaces_of_its_own(tmp_path, password, cold):
    """No Docker: namespaces for mounts, processes and the network, which has a loopback device only."""
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-mnp", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("unshare is not installed, or not allowed here")
    volume, home, bin_dir, start = (tmp_path / name for name in ("volume", "home", "bin", "start.sh"))
    for folder in (volume, home, bin_dir):
        folder.mkdir()
    theirs = os.environ.get("FTKIT_RUNPOD_START")
    start.write_text(Path(theirs).read_text() if theirs else START)
    python = f'exec {sys.executable} "$@"'
    tools = {"python": python, "ftkit": python.replace('"$@"', '-m ftcourse.cli "$@"'), "service": "echo service $*"}
    tools["jupyter"] = python.replace('"$@"', '-m jupyter "$@"')
    for name, body in tools.items():
        (bin_dir / name).write_text(f"#!/bin/sh\n{body}\n")
        (bin_dir / name).chmod(0o755)
    # Mount points in /: a tmpfs over it would hide Python, so the few names that the image has are made, and removed.
    made = [path for path in (Path("/workspace"), Path("/pre_start.sh")) if not path.exists()]
    try:
        for path in made:
            path.mkdir() if path.name == "workspace" else path.touch()
        script = f"""
            ip link set lo up
            mount --bind {volume} /workspace && mount --bind {HOOK} /pre_start.sh
            setsid bash {start} >{tmp_path}/start.log 2>&1 &
            {sys.executable} -c 'from tests.deploy.test_runpod_start import inside; inside("{password}")'
        """
        env = os.environ | {"PATH": f"{bin_dir}:{os.environ['PATH']}", "HOME": str(home), "JUPYTER_PASSWORD": password}
        env |= {"PYTHONPATH": str(ROOT), "PUBLIC_KEY": ""}
        command = [unshare, "-mnp", "--fork", "--kill-child", "--mount-proc", "bash", "-c", script]
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    finally:
        for path in made:
            path.rmdir() if path.is_dir() else path.unlink()
    log = (tmp_path / "start.log").read_text()
    assert done.returncode == 0, done.stderr + log
    assert (volume / "ftkit-notebooks" / FIRST).exists(), log
    seen = json.loads(done.stdout.splitlines()[-1])
    if password:
        assert (seen["listens"], seen["with"], seen["without"], seen["wrong"]) == (True, 200, 403, 403), seen
        assert seen["opens"] == f"/lab/tree/workspace/ftkit-notebooks/{FIRST}"
        assert password not in log
    else:
        assert seen == {"listens": False} and "JUPYTER_PASSWORD is not set" in log
