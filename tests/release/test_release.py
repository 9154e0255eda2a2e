"""A release is refused before anything changes, leaves nothing when it is only tried, and makes what it says."""

import re
import shutil
import subprocess
import zipfile

import pytest

from ftcourse.addresses import Published, read_project
from release import __main__ as releasing
from tests import ROOT

WANTED = Published("https://github.com/someone/ftkit.git", "0.1.0")
NOWHERE = Published("https://repository.invalid/ftkit.git", "0.1.0")
FILES = ("pyproject.toml", "ftkit/__init__.py", "CITATION.cff", "CHANGELOG.md", "README.md")


def git(folder, *arguments):
    own = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *own, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with the files that a release writes, and without notebooks; what the build was asked for."""
    for name in FILES:
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "here" / name)
    (tmp_path / "here" / ".gitignore").write_text("dist/\n")
    git(tmp_path / "here", "init")
    git(tmp_path / "here", "config", "user.name", "x")
    git(tmp_path / "here", "config", "user.email", "x@example.org")
    git(tmp_path / "here", "add", ".")
    git(tmp_path / "here", "commit", "-m", "one")
    asked = []

    def build(tree, *arguments):
        asked.append(arguments)
        (tree / "notebooks").mkdir(exist_ok=True)
        (tree / "notebooks" / "00.ipynb").write_text(" ".join(arguments))

    monkeypatch.setattr(releasing, "run_build", build)
    return tmp_path / "here", asked


def wheel(description="[a](https://b.org)", version=None):
    def build(tree, folder):
        folder.mkdir()
        path = folder / "ftkit-0-py3-none-any.whl"
        head = f"Metadata-Version: 2.4\nVersion: {version or read_project(tree).version}"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("ftkit-0.dist-info/METADATA", f"{head}\n\n{description}")
        return path

    return build


def state(root):
    return (
        git(root, "rev-parse", "HEAD"),
        git(root, "tag"),
        git(root, "status", "--porcelain"),
        git(root, "worktree", "list"),
    )


def test_a_release_makes_a_commit_two_tags_and_a_wheel(checkout):
    root, asked = checkout
    said = releasing.release(root, WANTED, build=wheel())
    assert asked == [("--stamp",), ("--check",), ("--colab", "notebooks")]
    assert git(root, "tag").split() == ["v0.1.0", "v0.1.0-colab"] and git(root, "status", "--porcelain") == ""
    assert (
        git(root, "rev-parse", "v0.1.0^{}")
        == git(root, "rev-parse", "HEAD")
        == git(root, "rev-parse", "v0.1.0-colab~1")
    )
    assert git(root, "show", "v0.1.0-colab:notebooks/00.ipynb") == "--colab notebooks"
    assert git(root, "show", "v0.1.0:notebooks/00.ipynb") == "--check"
    assert [path.name for path in (root / "dist").iterdir()] == ["ftkit-0-py3-none-any.whl"]
    assert said[-1] == "publish with: git push origin main v0.1.0 v0.1.0-colab"
    assert read_project(root) == WANTED
    read = {name: (root / name).read_text(encoding="utf-8") for name in FILES}
    assert f"]({WANTED.colab('00_start_here')})" in read["README.md"]
    assert re.search(r"^## \[Unreleased\]\n\n## \[0\.1\.0\] - \d{4}-\d\d-\d\d\n\nThe first", read["CHANGELOG.md"], re.M)
    assert 'repository-code: "https://github.com/someone/ftkit"\n' in read["CITATION.cff"]


def test_the_next_release_replaces_what_the_last_one_wrote(checkout):
    root, _ = checkout
    releasing.release(root, WANTED, build=wheel())
    changes = root / "CHANGELOG.md"
    changes.write_text(changes.read_text().replace("## [Unreleased]\n", "## [Unreleased]\n\n### Fixed\n\n- It.\n"))
    git(root, "commit", "-a", "-m", "two")
    following = Published(WANTED.repository, "0.2.0")
    releasing.release(root, following, build=wheel())
    read = {name: (root / name).read_text(encoding="utf-8") for name in FILES}
    assert read["README.md"].count("Open in Colab") == 1 and "v0.2.0-colab" in read["README.md"]
    assert read["CITATION.cff"].count("repository-code") == read["CITATION.cff"].count("date-released") == 1
    assert "version: 0.2.0\n" in read["CITATION.cff"] and '__version__ = "0.2.0"' in read["ftkit/__init__.py"]
    assert read["CHANGELOG.md"].index("## [0.2.0]") < read["CHANGELOG.md"].index("## [0.1.0]")


@pytest.mark.parametrize(
    ("wanted", "change", "says"),
    [
        (WANTED, lambda root: (root / "new.txt").write_text("x"), "has changes"),
        (NOWHERE, None, "no address to install from"),
        (Published("https://github.com/someone/ftkit", "0.1.0"), None, "no address to install from"),
        (WANTED, lambda root: git(root, "tag", "v0.1.0"), "does not come after 0.1.0"),
        (WANTED, lambda root: git(root, "tag", "v0.10.0"), "does not come after 0.10.0"),
        (Published(WANTED.repository, "0.0.9"), None, "pyproject.toml says 0.1.0 already"),
        (Published(WANTED.repository, "one"), None, "is no version"),
        (WANTED, lambda root: git(root, "checkout", "--detach"), "no branch"),
        (WANTED, "says nothing", "says nothing under"),
        (WANTED, "relative", "relative link, docs/a.md"),
        (WANTED, "other version", "does not say that it is version"),
    ],
)
def test_what_is_refused_changes_nothing(checkout, wanted, change, says):
    root, _ = checkout
    build = wheel()
    if change == "says nothing":
        (root / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n## [0.0.1]\n\n- It.\n")
        git(root, "commit", "-a", "-m", "two")
    elif change == "relative":
        build = wheel("[a](docs/a.md)")
    elif change == "other version":
        build = wheel(version="3")
    elif change:
        change(root)
    before = state(root)
    with pytest.raises(releasing.ReleaseError, match=re.escape(says)):
        releasing.release(root, wanted, build=build)
    assert state(root) == before and not (root / "dist").exists()


@pytest.mark.parametrize("wanted", [WANTED, NOWHERE])
def test_a_dry_run_leaves_nothing_and_needs_no_address(checkout, wanted):
    root, asked = checkout
    before = state(root)
    said = releasing.release(root, wanted, dry_run=True, build=wheel())
    assert state(root) == before and not (root / "dist").exists() and ("--check",) in asked
    assert said[0] == ("would tag v0.1.0, v0.1.0-colab" if wanted.on_github else "would tag v0.1.0")


def test_one_version_and_one_address_in_every_file():
    here = read_project(ROOT)
    assert f'__version__ = "{here.version}"' in (ROOT / "ftkit" / "__init__.py").read_text(encoding="utf-8")
    assert f"\nversion: {here.version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert ("Open in Colab" in (ROOT / "README.md").read_text(encoding="utf-8")) == here.on_github
