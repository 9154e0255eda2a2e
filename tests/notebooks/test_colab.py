"""The set-up cell on Colab, as built: installs from our one address or says in one sentence what to do, and only once.

Colab is played by a virtual environment with another torch than ours, where a module `google.colab` is loaded. Git
takes a folder of this machine for the address in pyproject.toml, so nothing touches the network.
"""

import ast
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

import build
from tests import ROOT

from . import anatomy

SOURCES = sorted((ROOT / "notebooks" / "source").glob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
ON_COLAB = "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')\n"
CARRIED = {"torch": "2.11.0+cu128", "ipywidgets": "7.7.1"}
# A package of the name and nothing more, whose build needs no other package.
STAND_IN = {
    "pyproject.toml": "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n",
    "backend.py": """
import zipfile
INFO = "ftkit-{version}.dist-info/"
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "ftkit-{version}-py3-none-any.whl"
    with zipfile.ZipFile(folder + "/" + name, "w") as wheel:
        wheel.writestr("ftkit.py", "")
        wheel.writestr(INFO + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(INFO + "METADATA", "Metadata-Version: 2.1\\nName: ftkit\\nVersion: {version}\\n"
            "Provides-Extra: colab\\nRequires-Dist: torch>={torch}\\nRequires-Dist: ipywidgets; extra == 'colab'\\n")
        wheel.writestr(INFO + "RECORD", "")
    return name
""".replace("{version}", PROJECT["version"]),
}


def guard(source: Path) -> str:
    """The part of the built set-up cell that does something on Colab only."""
    first = anatomy.code_cells(build.stub(build.read_source(source)))[0].source
    (found,) = [node for node in ast.parse(first).body if isinstance(node, ast.If)]
    return ast.get_source_segment(first, found)


@pytest.fixture
def colab(tmp_path):
    """A function that runs the cell in a new Python there; git finds the repository in the folder it is given."""
    folder = tmp_path / "colab"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    packages = next((folder / "env" / "lib").glob("python*/site-packages"))
    (packages / "pip").symlink_to(Path(sysconfig.get_path("purelib")) / "pip")
    for name, version in CARRIED.items():
        info = packages / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text(f"{info.name}/METADATA,,\n{info.name}/RECORD,,\n")

    def run(repository: Path, after: str = "", cell: str = guard(SOURCES[0])) -> subprocess.CompletedProcess:
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(tmp_path),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{repository.as_uri()}.insteadOf",
            "GIT_CONFIG_VALUE_0": REPOSITORY,
        }
        command = [folder / "env" / "bin" / "python", "-c", ON_COLAB + cell + "\n" + after]
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)

    return run


def repository(folder: Path, torch: str) -> Path:
    """A git repository of the stand-in, which wants this torch: the tag of this version, and a broken commit after."""

    def git(*arguments):
        own = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", *own, *arguments], cwd=folder, check=True, capture_output=True)

    folder.mkdir()
    for name, text in STAND_IN.items():
        (folder / name).write_text(text.replace("{torch}", torch))
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    git("tag", f"v{PROJECT['version']}")
    (folder / "backend.py").write_text("raise SystemExit('not the tag')")
    git("commit", "-a", "-m", "two")
    return folder


def test_where_nothing_is_published_one_sentence_says_what_to_do(colab, tmp_path):
    done = colab(tmp_path / "nowhere", after="print('went on')")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        f"Cannot install ftkit[colab] @ git+{REPOSITORY}@v{PROJECT['version']}: "
        "upload its folder, %pip install './ftkit[colab]'"
    ]


def test_it_stops_rather_than_replace_torch(colab, tmp_path):
    """The mutation: without what the cell says of it, pip takes the newer torch that is at hand."""
    info = "torch-2.12.0.dist-info/"
    with zipfile.ZipFile(tmp_path / "torch-2.12.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: torch\nVersion: 2.12.0\n")
        wheel.writestr(info + "RECORD", "")
    greedy = repository(tmp_path / "greedy", torch="2.12")
    done = colab(greedy)
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.startswith("Cannot install ftkit")
    mutation = guard(SOURCES[0]).replace('("torch", "ipywidgets")', '["ipywidgets"]')
    assert colab(greedy, "print(metadata.version('torch'))", mutation).stdout.splitlines()[-1] == "2.12.0"


def test_it_installs_the_tag_keeps_what_colab_carries_and_does_nothing_the_second_time(colab, tmp_path):
    say = "from importlib.metadata import version as v; print(ftkit.__file__, v('torch'), v('ipywidgets'))"
    done = colab(repository(tmp_path / "repository", torch="2.11"), say)
    assert done.returncode == 0, done.stderr
    said, facts = done.stdout.splitlines()
    assert said == "Colab: ftkit is installed"
    assert "site-packages" in facts and facts.split()[1:] == list(CARRIED.values())
    again = colab(tmp_path / "nowhere", say)  # from where it could not be installed
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_the_address_is_one_that_nobody_can_take_over():
    host = REPOSITORY.removeprefix("https://").partition("/")[0]
    assert host.endswith(".invalid") and REPOSITORY.endswith(".git")


def test_every_notebook_has_this_cell_and_none_installs_the_bare_name():
    assert len({guard(path) for path in SOURCES}) == 1 and len(SOURCES) == 18
    assert f"ftkit[colab] @ git+{REPOSITORY}@v{PROJECT['version']}" in guard(SOURCES[0])
    files = [
        *SOURCES,
        *(ROOT / "notebooks").glob("*.ipynb"),
        *ROOT.glob("*.md"),
        *ROOT.glob("notebooks/**/*.md"),
    ]
    lines = [(path.name, line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(name, line) for name, line in lines if "pip" in line and anatomy.BARE_NAME.search(line)] == []


@pytest.mark.parametrize(
    ("line", "bare"),
    [
        ("%pip install -q ftkit trl", True),
        ("!pip install ftkit==0.1.0", True),
        ("%pip install 'ftkit[lab]'", True),
        ("pip = [python, '-m', 'pip', 'install', 'ftkit']", True),
        ("%pip install './ftkit[colab]'", False),
        ("%pip install 'ftkit[colab] @ git+https://repository.invalid/ftkit.git@v0.1.0'", False),
        ("pip install -e .", False),
        ("pip install -r experiments/lora_speed/unsloth.txt", False),
    ],
)
def test_a_bare_name_is_told_from_an_address(line, bare):
    assert bool(anatomy.BARE_NAME.search(line)) == bare


def test_another_address_is_another_cell(monkeypatch, tmp_path):
    """So that the check of the notebooks against their sources notices it."""
    before = guard(SOURCES[0])
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(text.replace(REPOSITORY, "https://example.org/x.git"))
    monkeypatch.setattr(build, "ROOT", tmp_path)
    assert guard(SOURCES[0]) == before.replace(REPOSITORY, "https://example.org/x.git") != before
