"""Notebooks on other people's machines: the set-up cell that installs ftkit there, and links that work on Colab.

Colab, Kaggle and Lightning open a notebook without this repository around it. So the set-up cell installs ftkit from
the repository, and Colab, which finds no file beside a notebook, gets a variant of each in which links are absolute.
Both addresses come from pyproject.toml, through ftcourse/addresses.py.
"""

import re

import nbformat

from ftcourse.addresses import absolute_links, read_project
from stable import ROOT

FOLDER = "notebooks"
# What a source writes, and what learners get for it. Each service is known by what its own tools look for: Kaggle's
# kagglehub for KAGGLE_KERNEL_RUN_TYPE, Lightning's litdata for LIGHTNING_CLOUD_SPACE_ID.
SET_UP = re.compile(r'^import sys\n\nif "google\.colab" in sys\.modules:\n    \.\.\.  # installs ftkit$', re.M)
# torch and ipywidgets stay as the service has them. A package that was imported before pip replaced it is of two
# versions at once until the kernel is restarted: pyarrow, say, which pandas imports.
INSTALL = """\
import os
import sys

hosts = {{"KAGGLE_KERNEL_RUN_TYPE", "LIGHTNING_CLOUD_SPACE_ID"}}
if "google.colab" in sys.modules or hosts & set(os.environ):
    import subprocess
    from importlib import metadata

    source = "ftkit[colab] @ git+{repository}@{tag}"
    found = {{package.name: package.version for package in metadata.distributions()}}
    if found.get("ftkit") != "{version}":
        kept = [f"{{name}}=={{found[name]}}" for name in ("torch", "ipywidgets") if name in found]
        pip = [sys.executable, "-m", "pip", "install", "-q", source, *kept]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            why = done.stderr.strip().rpartition("\\n")[2]
            upload = "upload the folder of the project and run %pip install './ftkit[colab]'"
            do = f"turn the notebook's internet access on, or {{upload}}"
            sys.exit(f"Cannot install {{source}} ({{why}}): {{do}}")
    loaded = sys.modules.keys() & {{"numpy", "pandas", "pyarrow", "fsspec", "huggingface_hub", "datasets"}}
    now = {{name: metadata.version(name) for name in sorted(loaded)}}
    if old := [name for name in now if sys.modules[name].__version__ != now[name]]:
        do = "Restart the session and run this cell again"
        sys.exit(f"{{do}}: pip has replaced {{', '.join(old)}}, in use here")
    print("ftkit {version} is installed")"""
BADGE = re.compile(r"\n\n\[Open in Colab\]\(.*\)\Z")


def set_up(source):
    """A code cell's source with the installation written out, from the address and version in pyproject.toml."""

    def install(_):
        published = read_project(ROOT)
        return INSTALL.format(repository=published.repository, tag=published.tag, version=published.version)

    return SET_UP.sub(install, source)


def add_badge(nb, name):
    """Let the first cell end with a link that opens the notebook on Colab, in place; without one before publication.

    It is text, because a picture would be fetched from outside whenever the notebook is opened.
    """
    published = read_project(ROOT)
    if published.on_github and nb.cells[0].cell_type == "markdown":
        nb.cells[0].source += f"\n\n[Open in Colab]({published.colab(name)})"


def for_colab(nb):
    """A copy of a built notebook in which links to the repository's files are absolute, in outputs as well.

    Raises ValueError where the repository of pyproject.toml is not on GitHub.
    """
    published = read_project(ROOT)

    def absolute(text):
        return absolute_links(text, FOLDER, published.anywhere)

    nb = nbformat.from_dict(nb)
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = BADGE.sub("", absolute(cell.source))
        for output in cell.get("outputs", []):
            shown = output.get("data", {})
            shown.update({kind: absolute(shown[kind]) for kind in ("text/html", "text/markdown") if kind in shown})
    return nb


def stamp(nb, wanted):
    """Bring a built notebook up to date, in place, without running it: what differs must have no output.

    That is so for text and for the set-up cell, which does nothing here. Returns whether it was possible; the
    notebook is left alone where any other cell differs.
    """
    if len(nb.cells) != len(wanted.cells):
        return False
    set_up_cell = next((cell for cell in wanted.cells if cell.cell_type == "code"), None)
    for old, new in zip(nb.cells, wanted.cells, strict=True):
        silent = new.cell_type == "markdown" or (new is set_up_cell and not old.get("outputs"))
        if old.cell_type != new.cell_type or (not silent and old.source != new.source):
            return False
    for old, new in zip(nb.cells, wanted.cells, strict=True):
        old.source, old.id = new.source, new.id
        old.metadata = new.metadata
    return True
