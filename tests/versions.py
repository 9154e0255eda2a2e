"""Run the tests that depend on versions of other packages, at the lowest that pyproject.toml allows or the newest.

    python tests/versions.py lowest
    python tests/versions.py newest

In a virtual environment of its own, in a temporary folder that is removed afterwards (or in `--into FOLDER`, and kept):
nothing is installed here. On Linux pip takes torch's build for CUDA, 5 GB with its libraries, unless PIP_FIND_LINKS or
PIP_EXTRA_INDEX_URL offer one for processors. Where they have one of a single version only, name it: `--torch 2.13.0`.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

TESTS = (
    *(
        "tests/ftkit/test_compat.py",
        "tests/ftkit/finetune/test_memory.py",
        "tests/ftkit/memory",
        "tests/ftkit/adapters",
    ),
    *("tests/ftkit/distributed/test_checkpoint.py", "tests/ftcourse/live_ranks/test_live.py"),
    "tests/ftkit/distributed/test_loading.py",
)
EXTRAS = ("lab", "test")
PINNED = ("lab",)  # extras whose lower bounds are tried as well; what only tests need may be new
TABLE = """
import sys
from importlib.metadata import version
for name in sys.argv[1:]:
    print(f"{name:15} {version(name)}")
"""
REQUIREMENT = re.compile(r"(?P<name>[\w-]+)>=(?P<lowest>[\w.]+)")


def requirements(project: dict, choice: str, torch: str | None = None) -> list[str]:
    """What pip is given: our own packages at their lower bounds, or none of them, for "newest"; torch as asked for."""
    lowest = {}
    if choice == "lowest":
        named = project["dependencies"] + [r for extra in PINNED for r in project["optional-dependencies"][extra]]
        lowest = dict(REQUIREMENT.match(requirement).groups() for requirement in named)
    return [f"{name}=={version}" for name, version in (lowest | ({"torch": torch} if torch else {})).items()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("choice", choices=["lowest", "newest"])
    parser.add_argument("tests", nargs="*", default=TESTS, help="files or folders of tests (those named above)")
    parser.add_argument("--torch", metavar="VERSION", help="this torch, instead of the lowest or newest")
    parser.add_argument("--into", metavar="FOLDER", help="keep the environment here; a second run is then quick")
    given = parser.parse_args(arguments)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    kept = nullcontext(given.into) if given.into else tempfile.TemporaryDirectory(prefix="ftkit-versions-")
    with kept as folder:
        python = Path(folder, "bin", "python")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--editable", f"{ROOT}[{','.join(EXTRAS)}]"]
        subprocess.run([*install, *requirements(project, given.choice, given.torch)], check=True)
        ours = [REQUIREMENT.match(r)["name"] for r in project["dependencies"]]
        ours += [REQUIREMENT.match(r)["name"] for r in project["optional-dependencies"]["lab"]]
        subprocess.run([python, "-c", TABLE, *ours], check=True)
        command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *given.tests]
        alone = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment = alone | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
