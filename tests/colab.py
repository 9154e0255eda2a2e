"""Run the notebooks in an environment like Colab's, from the set-up cell that installs ftkit to the last cell.

    python -m tests.colab                                      all of them, as a learner gets them
    python -m tests.colab 05_chat_templates --solved           one, with the exercises solved
    python -m tests.colab --python python3.13 --into FOLDER    with Colab's Python; a second run is then quick

The environment has Colab's versions of 19 August 2026 (tests/colab.txt), a module `google.colab` that the kernel has
loaded, and no other part of ftkit. Git takes the last commit of this checkout for the address of the set-up cell, and
the notebooks are those of that commit. A first session has used pandas before the set-up cell, which then has to ask
for a restart; each notebook gets a new one.
It takes packages from PyPI, among them torch for CUDA (2.7 GB), unless PIP_EXTRA_INDEX_URL offers one for processors.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "notebooks"))

import build
from ftcourse.addresses import read_project
from tests.notebooks.anatomy import code_cells, output_text, verdicts

LIST = ROOT / "tests" / "colab.txt"
MODULE = '"""In place of Colab\'s own, which loads numpy and more."""\nimport numpy\n'
KERNEL = ["-m", "ipykernel_launcher", "-f", "{connection_file}", "--IPKernelApp.exec_lines=import google.colab"]
RESTART = "Restart the session and run this cell again"
FACTS = """
import sys
from importlib.metadata import version
print("Python", sys.version.split()[0])
for name in sys.argv[1:]:
    print(f"{name:16} {version(name)}")
"""
SHOWN = ("torch", "transformers", "accelerate", "peft", "trl", "datasets", "pyarrow", "psutil", "ipython", "ipykernel")


class ColabError(Exception):
    """What does not work there."""


def make_environment(folder: Path, python: str) -> Path:
    """A virtual environment with Colab's packages and its module, and a kernel of it; returns its Python."""
    interpreter = folder / "env" / "bin" / "python"
    if not interpreter.exists():
        subprocess.run([python, "-m", "venv", folder / "env"], check=True)
        subprocess.run([interpreter, "-m", "pip", "install", "--quiet", "--requirement", LIST], check=True)
    subprocess.run([interpreter, "-m", "pip", "uninstall", "--quiet", "--yes", "ftkit"], check=True)
    # Of what an earlier run of the set-up cell replaced, Colab's version comes back.
    subprocess.run([interpreter, "-m", "pip", "install", "--quiet", "--requirement", LIST], check=True)
    (packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    (packages / "google" / "colab").mkdir(parents=True, exist_ok=True)
    (packages / "google" / "colab" / "__init__.py").write_text(MODULE)
    specification = {"argv": [str(interpreter), *KERNEL], "display_name": "Colab", "language": "python"}
    (folder / "kernels" / "colab").mkdir(parents=True, exist_ok=True)
    (folder / "kernels" / "colab" / "kernel.json").write_text(json.dumps(specification))
    return interpreter


def make_repository(folder: Path) -> Path:
    """A clone of this checkout's last commit, with the tag that the set-up cell asks for."""
    repository = folder / "repository"
    if repository.exists():
        subprocess.run(["rm", "-r", repository], check=True)
    subprocess.run(["git", "clone", "--quiet", "--shared", ROOT, repository], check=True)
    subprocess.run(["git", "tag", "--force", read_project(ROOT).tag], cwd=repository, check=True, capture_output=True)
    return repository


def environment_of(interpreter: Path, folder: Path, repository: Path) -> dict[str, str]:
    """The environment of a kernel there: this one without what is set for our own Python; git finds the repository."""
    dropped = ("PYTHON", "VIRTUAL_ENV", "FTKIT_", "HF_", "JUPYTER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {
        "PATH": os.pathsep.join([str(interpreter.parent), os.environ["PATH"]]),
        "IPYTHONDIR": str(folder / "ipython"),
        "FTKIT_PROGRESS": "off",  # what it solves is no learner's
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else each kernel warns of Python's own frozen modules
        "CUDA_VISIBLE_DEVICES": "",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{repository.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": read_project(ROOT).repository,
    }


def run(nb, folder: Path, environment: dict[str, str]) -> str:
    """Execute a notebook there and return what it printed. Raises build.BuildError for a cell that fails."""
    content = folder / "content"
    content.mkdir(exist_ok=True)
    build.execute(nb, content, kernel="colab", environment=environment)
    return "\n".join(output_text(out) for cell in code_cells(nb) for out in cell.get("outputs", []))


def set_up(cell: str, folder: Path, environment: dict[str, str]) -> None:
    """Run the set-up cell in two sessions, as a learner does who used pandas before it and so has to restart.

    Raises ColabError unless it asks the first session for a restart, and installs nothing more in the second.
    """

    def said(*cells: str) -> str:
        try:
            return run(new_notebook(cells=[new_code_cell(cell) for cell in cells]), folder, environment)
        except build.BuildError as error:
            return str(error)

    start = time.perf_counter()
    first = said("import pandas, pyarrow", cell)
    print(f"{'the set-up cell':40} installed ftkit in {time.perf_counter() - start:.0f} s", flush=True)
    if RESTART not in first:
        raise ColabError(f"pip replaced pyarrow, which was in use, and the set-up cell asked for no restart:\n{first}")
    second = said(cell, cell)
    if second.count(f"ftkit {read_project(ROOT).version} is installed") != 2:
        raise ColabError(f"after a restart, the set-up cell says:\n{second}")


def runs(stem: str, nb, folder: Path, environment: dict[str, str], solved: bool) -> bool:
    """Run a notebook, print in a line what came of it, and return whether all is well."""
    start = time.perf_counter()
    try:
        run(nb, folder, environment)
        wrong = {word for cell in code_cells(nb) for word in verdicts(cell)} - {"Right"} if solved else set()
        outcome = f"a checker says {', '.join(sorted(wrong))}" if wrong else "ran"
    except build.BuildError as error:
        outcome = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    print(f"{stem:40} {outcome} in {time.perf_counter() - start:.0f} s", flush=True)
    return outcome == "ran"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NN_topic", help="notebooks to run (all)")
    parser.add_argument("--solved", action="store_true", help="with the exercises solved; each checker must say Right")
    parser.add_argument("--python", default=sys.executable, help="the Python of the environment (%(default)s)")
    parser.add_argument("--into", metavar="FOLDER", help="keep the environment here; a second run is then quick")
    given = parser.parse_args(arguments)
    sources = {path.stem: path for path in sorted((ROOT / "notebooks" / "source").glob("*.py"))}
    if unknown := set(given.names) - set(sources):
        parser.error(f"no source named {', '.join(sorted(unknown))}; there are {', '.join(sources)}")
    kept = nullcontext(given.into) if given.into else tempfile.TemporaryDirectory(prefix="ftkit-colab-")
    with kept as name:
        folder = Path(name).resolve()
        interpreter = make_environment(folder, given.python)
        os.environ["JUPYTER_PATH"] = str(folder)
        repository = make_repository(folder)
        environment = environment_of(interpreter, folder, repository)
        # Of the same commit as the library, whatever happens to this checkout in the meantime.
        sources = {stem: repository / path.relative_to(ROOT) for stem, path in sources.items()}
        variant = build.solve if given.solved else build.stub
        try:
            set_up(code_cells(variant(build.read_source(sources[next(iter(sources))])))[0].source, folder, environment)
        except ColabError as error:
            print(error, file=sys.stderr)
            return 1
        subprocess.run([interpreter, "-c", FACTS, *SHOWN], check=True)
        failed = [
            stem
            for stem in given.names or sources
            if not runs(stem, variant(build.read_source(sources[stem])), folder, environment, given.solved)
        ]
        return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
