"""Every link between the repository's pages and notebooks leads to a file, and to a heading where it names one."""

import subprocess

import jupytext
import pytest

from ftcourse.addresses import CODE
from tests import ROOT

from .test_readme import anchors, dead_links

SOURCES = sorted((ROOT / "notebooks" / "source").glob("*.py"))
PAGES = sorted(
    path
    for pattern in ("*.md", ".github/**/*.md", "*/**/*.md")
    for path in ROOT.glob(pattern)
    if path.relative_to(ROOT).parts[0] not in {".venv", "build", "dist", "runs"}
)


def text_of(path):
    """A page or the prose of a notebook's source; in code, brackets mean something else."""
    if path.suffix == ".py":
        cells = jupytext.read(path, fmt="py:percent").cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    else:
        text = path.read_text(encoding="utf-8")
    return CODE.sub(lambda code: code[0].replace("](", "] ("), text)


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    folder = ROOT / "notebooks" if path in SOURCES else path.parent  # a source's links are those of its notebook
    assert dead_links(text_of(path), folder) == []


def test_the_pages_are_all_that_git_knows():
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout")
    assert {ROOT / line for line in listed.stdout.splitlines()} <= set(PAGES)
    assert len(SOURCES) == 18 and anchors("## A b") == {"a-b"}


def test_a_dead_link_is_seen_in_prose_and_not_in_code(tmp_path):
    (tmp_path / "a.md").write_text("[x](no.md) `[y](z)` [w](#nothing)\n\n```python\nf[0](1)\n```\n# Here\n[v](#here)\n")
    assert dead_links(text_of(tmp_path / "a.md"), tmp_path) == ["no.md", "#nothing"]
    (tmp_path / "b.py").write_text("# %% [markdown]\n# [x](no.ipynb)\n\n# %%\nf[0](1)\n")
    assert dead_links(text_of(tmp_path / "b.py"), tmp_path) == ["no.ipynb"]
