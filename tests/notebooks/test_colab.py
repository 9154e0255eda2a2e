"""The set-up cell on Colab, Kaggle and Lightning, as built: installs from our one address or says what to do, and once.

The service is played by a virtual environment with another torch than ours, where a module `google.colab` is loaded or
a variable is set. Git takes a folder of this machine for the address in pyproject.toml, so nothing touches the network.
The whole course in an environment like Colab's: `make colab`.
"""

import functools
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import build
import hosted
from ftcourse.addresses import Published
from tests import ROOT
from tests.colab import environment_of

from . import anatomy

pytestmark = pytest.mark.thorough

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
            "Provides-Extra: colab\\nRequires-Dist: {requirement}\\nRequires-Dist: ipywidgets; extra == 'colab'\\n")
        wheel.writestr(INFO + "RECORD", "")
    return name
""".replace("{version}", PROJECT["version"]),
}


@functools.cache
def set_up_cell(source: Path) -> str:
    return anatomy.code_cells(build.stub(build.read_source(source)))[0].source


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

    def run(
        repository: Path, after: str = "", cell: str = set_up_cell(SOURCES[0]), before: str = ON_COLAB, **variables: str
    ) -> subprocess.CompletedProcess:
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
        command = [folder / "env" / "bin" / "python", "-c", f"{before}\n{cell}\n{after}"]
        return subprocess.run(command, env=environment | variables, cwd=folder, capture_output=True, text=True)

    return run


def repository(folder: Path, requirement: str) -> Path:
    """A git repository of the stand-in with this requirement: the tag of this version, and a broken commit after."""

    def git(*arguments):
        own = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main"]
        subprocess.run(["git", *own, *arguments], cwd=folder, check=True, capture_output=True)

    folder.mkdir()
    for name, text in STAND_IN.items():
        (folder / name).write_text(text.replace("{requirement}", requirement))
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    git("tag", f"v{PROJECT['version']}")
    (folder / "backend.py").write_text("raise SystemExit('not the tag')")
    git("commit", "-a", "-m", "two")
    return folder


def offer(folder: Path, name: str, version: str) -> None:
    """Let pip find a wheel of this version: a module that says its version."""
    info = f"{name}-{version}.dist-info/"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", f"__version__ = '{version}'\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(info + "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(info + "RECORD", "")


def test_where_nothing_is_published_one_sentence_says_what_to_do(colab, tmp_path):
    done = colab(tmp_path / "nowhere", after="print('went on')")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Cannot install ftkit[colab] @ git+{REPOSITORY}@v{PROJECT['version']} (")
    assert line.endswith(
        "): turn the notebook's internet access on, or upload the folder of the project and run "
        "%pip install './ftkit[colab]'"
    )


def test_it_stops_rather_than_replace_torch(colab, tmp_path):
    """The mutation: without what the cell says of it, pip takes the newer torch that is at hand."""
    offer(tmp_path, "torch", "2.12.0")
    greedy = repository(tmp_path / "greedy", "torch>=2.12")
    done = colab(greedy)
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.startswith("Cannot install ftkit")
    assert "ResolutionImpossible" in done.stderr
    mutation = set_up_cell(SOURCES[0]).replace('("torch", "ipywidgets")', '["ipywidgets"]')
    assert mutation != set_up_cell(SOURCES[0])
    assert colab(greedy, "print(metadata.version('torch'))", mutation).stdout.splitlines()[-1] == "2.12.0"


def test_it_installs_the_tag_keeps_what_colab_carries_and_does_nothing_the_second_time(colab, tmp_path):
    say = (
        "import ftkit; from importlib.metadata import version as v; print(ftkit.__file__, v('torch'), v('ipywidgets'))"
    )
    done = colab(repository(tmp_path / "repository", "torch>=2.11"), say)
    assert done.returncode == 0, done.stderr
    said, facts = done.stdout.splitlines()
    assert said == f"ftkit {PROJECT['version']} is installed"
    assert "site-packages" in facts and facts.split()[1:] == list(CARRIED.values())
    again = colab(tmp_path / "nowhere", say)  # from where it could not be installed
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_what_was_imported_before_it_was_replaced_asks_for_a_restart_until_there_was_one(colab, tmp_path):
    offer(tmp_path, "pandas", "2.0.1")  # of another length, else Python takes the compiled file of the other
    wanting = repository(tmp_path / "wanting", "pandas>=2")
    (packages,) = (tmp_path / "colab" / "env" / "lib").glob("python*/site-packages")
    (packages / "pandas-1.0.dist-info").mkdir()
    (packages / "pandas-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: pandas\nVersion: 1.0\n")
    (packages / "pandas-1.0.dist-info" / "RECORD").write_text("pandas.py,,\npandas-1.0.dist-info/METADATA,,\n")
    (packages / "pandas.py").write_text("__version__ = '1.0'\n")
    twice = f"try:\n    exec({set_up_cell(SOURCES[0])!r})\nexcept SystemExit as error:\n    print(error)"
    done = colab(wanting, twice, before=ON_COLAB + "import pandas\n" + twice, cell="")
    restart = "Restart the session and run this cell again: pip has replaced pandas, in use here"
    assert done.stdout.splitlines() == [restart, restart], done.stderr
    after = colab(wanting, before=ON_COLAB + "import pandas")
    assert (after.returncode, after.stdout) == (0, f"ftkit {PROJECT['version']} is installed\n")


def test_kaggle_and_lightning_are_known_and_nothing_happens_elsewhere(colab, tmp_path):
    for variable, acts in (("KAGGLE_KERNEL_RUN_TYPE", True), ("LIGHTNING_CLOUD_SPACE_ID", True), ("OTHER", False)):
        done = colab(tmp_path / "nowhere", before="", **{variable: "1"})
        assert (done.returncode, done.stdout) == (int(acts), ""), variable
        assert done.stderr.startswith("Cannot install ftkit") == acts


def test_the_colab_run_is_no_learner(tmp_path, monkeypatch):
    """Its solutions would count as solved exercises, and 00 would show them instead of what is stored."""
    monkeypatch.setenv("FTKIT_PROGRESS", str(tmp_path / "progress.jsonl"))
    assert environment_of(Path(sys.executable), tmp_path, tmp_path)["FTKIT_PROGRESS"] == "off"


def test_the_address_is_one_that_nobody_can_take_over():
    """Before publication it is under .invalid; afterwards one that only its owner can write to."""
    assert REPOSITORY.startswith("https://") and REPOSITORY.endswith(".git")
    assert not Published(REPOSITORY, "1").is_public or REPOSITORY.startswith("https://github.com/")


def test_every_notebook_has_this_cell_and_none_installs_the_bare_name():
    assert len({set_up_cell(path) for path in SOURCES}) == 1 and len(SOURCES) == 18
    assert f"ftkit[colab] @ git+{REPOSITORY}@v{PROJECT['version']}" in set_up_cell(SOURCES[0])
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
    before = set_up_cell(SOURCES[0])
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(text.replace(REPOSITORY, "https://example.org/x.git"))
    monkeypatch.setattr(hosted, "ROOT", tmp_path)
    after = set_up_cell.__wrapped__(SOURCES[0])
    assert after == before.replace(REPOSITORY, "https://example.org/x.git") != before


def test_of_what_colab_carries_only_datasets_is_too_old():
    """So that a new lower bound, which makes each learner there download more and restart, is noticed."""
    lines = (ROOT / "tests" / "colab.txt").read_text(encoding="utf-8").splitlines()
    carried = dict(line.lower().split("==") for line in lines if "==" in line)
    wanted = map(Requirement, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["colab"])
    too_old = {one.name for one in wanted if one.name in carried and carried[one.name] not in one.specifier}
    assert too_old == {"datasets"}  # trl wants a newer one
    assert {one.name for one in map(Requirement, PROJECT["dependencies"])} - set(carried) == {"trl"}
