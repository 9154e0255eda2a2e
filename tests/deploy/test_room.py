"""The folder for a room without internet: it is complete for its machines, checked, and installs from itself alone.

A tiny project with tiny wheels stands for the course and its dependencies; `make tryroom` tries the real one.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deploy.room import make_room
from deploy.room.make_room import RoomError, Target, complete, digest, fill, pip, write_rest, wrong_files

pytestmark = pytest.mark.thorough

BACKEND = """
import os, zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "ftkit-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("ftkit.py", "")
        wheel.writestr("ftkit-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("ftkit-1.0.dist-info/METADATA", METADATA)
        wheel.writestr("ftkit-1.0.dist-info/RECORD", "")
    return name
METADATA = '''Metadata-Version: 2.1
Name: ftkit
Version: 1.0
Provides-Extra: lab
Requires-Dist: torch >=2
Requires-Dist: labs >=1 ; extra == 'lab'
Requires-Dist: unwanted ; extra == 'test'
'''
"""
WHEELS = {  # name, version: what it needs
    ("torch", "2.0"): [],
    ("torch", "2.1"): ["numbers-lib"],
    ("torch", "3.0"): [],  # which constraints.txt does not allow
    ("Numbers_Lib", "1.0"): [],
    ("labs", "1.0"): ["winlib; sys_platform == 'win32'", "newlib; python_version >= '3.99'", "rings[gold]"],
    ("winlib", "1.0"): ["winbase"],
    ("winbase", "1.0"): [],
    ("rings", "1.0"): ["aurum; extra == 'gold'", "argentum; extra == 'silver'"],
    ("aurum", "1.0"): ["rings"],  # a circle
}
BASIC = {"ftkit-1.0", "torch-2.1", "Numbers_Lib-1.0", "labs-1.0", "rings-1.0", "aurum-1.0"}


def make_wheel(folder: Path, name: str, version: str, needs: list[str]) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name.lower()}.py", "")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        head = (
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nProvides-Extra: gold\nProvides-Extra: silver\n"
        )
        wheel.writestr(f"{info}/METADATA", head + "".join(f"Requires-Dist: {need}\n" for need in needs))
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "ftkit"\nversion = "1.0"\n'
    )
    (folder / "backend.py").write_text(BACKEND)
    (folder / "constraints.txt").write_text("torch==2.1\n")
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A folder that stands for the package index."""
    folder = tmp_path_factory.mktemp("index")
    for (name, version), needs in WHEELS.items():
        make_wheel(folder, name, version, needs)
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch, index):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def made(project, index, tmp_path_factory):
    """A whole room for machines like this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(index))
        room = tmp_path_factory.mktemp("room")
        write_rest(room, fill(room / "wheels", Target(), "default", project), Target(), "student")
    return room


def names(wheels):
    return {"-".join(path.name.split("-")[:2]) for path in wheels}


def test_the_room_has_everything_and_installs_from_itself_alone(made, monkeypatch, tmp_path):
    assert names((made / "wheels").glob("*.whl")) == BASIC and wrong_files(made) == []
    lines = (made / "requirements.txt").read_text().splitlines()
    assert len(lines) == len(BASIC) and "torch==2.1 --hash=sha256:" in "\n".join(lines)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    arguments = ["install", "--target", tmp_path, "--no-index", "--find-links", made / "wheels"]
    pip(*arguments, "--require-hashes", "-r", made / "requirements.txt")
    assert (tmp_path / "torch.py").exists() and (tmp_path / "ftkit.py").exists()
    notebooks = sorted((made / "notebooks").glob("*.ipynb"))
    assert len(notebooks) == 18 and "<summary>Solution" not in notebooks[1].read_text(encoding="utf-8")


def test_a_damaged_wheel_is_noticed_and_not_installed(made, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_FIND_LINKS", "")  # where the whole one lies
    room = shutil.copytree(made, tmp_path / "stick")
    wheel = next((room / "wheels").glob("torch-*.whl"))
    make_wheel(room / "wheels", "torch", "2.1", ["numbers-lib", "labs"])  # another file of that name
    (room / "start.sh").unlink()
    assert sorted(wrong_files(room)) == ["start.sh", f"wheels/{wheel.name}"]
    with pytest.raises(RoomError, match=r"(?i)hash"):
        pip("install", "--dry-run", "--no-index", "--find-links", room / "wheels", "--require-hashes", "-r",
            room / "requirements.txt", "--target", tmp_path / "x")  # fmt: skip


def test_for_other_machines_it_holds_what_their_markers_ask_for(project, index, tmp_path):
    windows = fill(tmp_path / "wheels", Target("windows", "3.12"), "default", project)
    assert names(windows) == BASIC | {"winlib-1.0", "winbase-1.0"}
    for target in (Target(), Target("linux-x86_64", "3.12"), Target("mac-arm64", "3.13")):
        found, missing = complete(tmp_path / "wheels", "ftkit[lab]", target.environment(), {})
        assert (names(found), missing) == (BASIC, [])


def test_what_cannot_be_had_is_named(tmp_path):
    environment = Target("windows").environment() | {"python_version": "3.99"}
    make_wheel(tmp_path, "labs", "1.0", WHEELS["labs", "1.0"])
    found, missing = complete(tmp_path, "labs", environment, {})
    assert names(found) == {"labs-1.0"} and sorted(missing) == ["newlib", "rings", "winlib"]
    with pytest.raises(RoomError, match="torch==9"):
        pip("download", "-d", tmp_path, "torch==9")


def test_wheels_of_an_earlier_time_do_not_get_into_the_room(index, project):
    """The index itself as the folder: it holds a torch that constraints.txt does not allow, which is newer."""
    pins = make_room.read_pins(project / "constraints.txt")
    assert names(complete(index, "torch", Target().environment(), pins)[0]) == {"torch-2.1", "Numbers_Lib-1.0"}
    assert names(complete(index, "torch", Target().environment(), {})[0]) == {"torch-3.0"}


def test_pip_is_told_of_other_machines_only():
    assert Target().pip_flags() == []
    flags = Target("linux-x86_64", "3.13").pip_flags()
    assert flags[:4] == ["--python-version", "3.13", "--implementation", "cp"]
    assert {"manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"} <= set(flags)
    assert Target("windows").environment()["os_name"] == "nt"


def test_start_refuses_another_python_with_one_sentence(made, tmp_path):
    assert f'"{make_room.THIS_PYTHON}"' in (made / "start.sh").read_text()
    script = tmp_path / "start.sh"
    script.write_text((made / "start.sh").read_text().replace(make_room.THIS_PYTHON, "9.9"))
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run(["sh", str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("This folder is for Python 9.9")
    assert not (tmp_path / "ftkit").exists()


def test_start_copies_notebooks_and_never_over_a_learners_own(made, tmp_path):
    """With a virtual environment that is there already."""
    home = tmp_path / "ftkit"
    (home / "venv" / "bin").mkdir(parents=True)
    (home / "venv" / ".ready").touch()
    (home / "notebooks").mkdir()
    (home / "notebooks" / "05_chat_templates.ipynb").write_text("my work")
    program = home / "venv" / "bin" / "ftkit"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    run = {"env": {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}, "capture_output": True, "text": True}
    assert subprocess.run([str(made / "start.sh"), "install"], **run, check=True).stdout == ""
    done = subprocess.run([str(made / "start.sh"), "--no-browser"], **run, check=True)
    assert done.stdout == f"lab {home}/notebooks --no-browser\n"
    assert len(list((home / "notebooks").glob("*.ipynb"))) == 18
    assert (home / "notebooks" / "05_chat_templates.ipynb").read_text() == "my work"


def test_both_start_files_install_alike(made):
    shell, windows = ((made / name).read_bytes().decode() for name in ("start.sh", "start.bat"))
    line = "-m pip install -q --no-index --find-links wheels --require-hashes -r requirements.txt"
    assert line in shell and line in windows and "@" not in shell.replace('"$@"', "")
    assert "@PYTHON@" not in windows and windows.count("\r\n") == windows.count("\n")
    assert digest(made / "start.sh") in (made / "SHA256SUMS").read_text()
