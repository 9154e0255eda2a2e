"""Release a version: a commit, two tags and a wheel, made beside the checkout and given to it once all of it is there.

    python -m release 0.1.0 --repository https://github.com/OWNER/ftkit.git --dry-run
    python -m release 0.1.0 --repository https://github.com/OWNER/ftkit.git
    python -m release 0.2.0

The commit sets version and address wherever they stand, dates the changelog's section, and writes the links to Colab.
The tag vX is this commit. The tag vX-colab is one commit more, with the notebooks as Colab opens them: there they link
to each other by absolute addresses. The wheel is left in dist/. Nothing is pushed or uploaded.
"""

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from packaging.version import InvalidVersion, Version

from ftcourse.addresses import LINK, Published, read_project

ROOT = Path(__file__).resolve().parent.parent
UNRELEASED = re.compile(r"^## \[Unreleased\]\n+(.*?)(?=^## |^\[|\Z)", re.M | re.S)
BADGES = re.compile(r"(<!-- badges: [^\n]*-->\n).*?(<!-- end of badges -->)", re.S)
COLAB_BADGE = "https://colab.research.google.com/assets/colab-badge.svg"


class ReleaseError(Exception):
    """What stands in the way of a release, and what to do about it."""


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise ReleaseError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def problems(root: Path, wanted: Published, dry_run: bool = False) -> list[str]:
    """What stands in the way of releasing `wanted` from the checkout `root`, a sentence each."""
    now = read_project(root)
    found = []
    if git(root, "status", "--porcelain"):
        found.append("the working tree has changes: commit or stash them")
    if not dry_run and not git(root, "branch", "--show-current"):
        found.append("no branch is checked out: check out the one that the release goes to")
    if not dry_run and not (wanted.is_public and wanted.repository.endswith(".git")):
        found.append(
            f"{wanted.repository} is no address to install from: give --repository https://github.com/OWNER/NAME.git"
        )
    section = UNRELEASED.search(read(root / "CHANGELOG.md"))
    if not section or not section[1].strip():
        found.append("CHANGELOG.md says nothing under [Unreleased]: write what changed since the last release")
    try:
        version = Version(wanted.version)
    except InvalidVersion:
        return [*found, f"{wanted.version!r} is no version: give one like 0.2.0"]
    released = [Version(tag[1:]) for tag in git(root, "tag", "--list", "v[0-9]*").split() if "-" not in tag]
    if newer := [str(other) for other in released if other >= version]:
        found.append(f"{wanted.version} does not come after {max(newer, key=Version)}, which is released")
    if version < Version(now.version):
        found.append(f"pyproject.toml says {now.version} already: give that version or a later one")
    return found


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def change(path: Path, pattern: str | re.Pattern, new: str) -> None:
    """Replace the one place in a file that the pattern matches. Raises ReleaseError unless there is exactly one."""
    text, count = re.subn(pattern, lambda _: new, read(path), flags=0 if isinstance(pattern, re.Pattern) else re.M)
    if count != 1:
        raise ReleaseError(f"{path.name}: {count} places match {pattern}, where one was expected")
    path.write_text(text, encoding="utf-8")


def write_version(tree: Path, wanted: Published, day: str) -> None:
    """Set version, address, changelog, citation and badge in a checkout."""
    change(tree / "pyproject.toml", r'^version = ".*"$', f'version = "{wanted.version}"')
    project = tree / "pyproject.toml"  # where other addresses begin with the repository's
    project.write_text(read(project).replace(read_project(tree).page, wanted.page), encoding="utf-8")
    change(tree / "ftkit" / "__init__.py", r'^__version__ = ".*"$', f'__version__ = "{wanted.version}"')
    citation = tree / "CITATION.cff"
    change(citation, r"^version: .*$", f"version: {wanted.version}")
    rest = re.sub(r"^(date-released|repository-code): .*\n", "", read(citation), flags=re.M)
    citation.write_text(f'{rest}date-released: {day}\nrepository-code: "{wanted.page}"\n', encoding="utf-8")
    changes = UNRELEASED.search(read(tree / "CHANGELOG.md"))[1]
    change(tree / "CHANGELOG.md", UNRELEASED, f"## [Unreleased]\n\n## [{wanted.version}] - {day}\n\n{changes}")
    badge = f"[![Open in Colab]({COLAB_BADGE})]({wanted.colab('00_start_here')})\n" if wanted.on_github else ""
    opening, end = BADGES.search(read(tree / "README.md")).groups()
    change(tree / "README.md", BADGES, opening + badge + end)


def run_build(tree: Path, *arguments: str) -> None:
    """notebooks/build.py of a checkout, on its own code. Raises ReleaseError with what it says if it fails."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tree), str(tree / "notebooks")])}
    command = [sys.executable, "notebooks/build.py", *arguments]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ReleaseError(f"notebooks/build.py {' '.join(arguments)}:\n{done.stdout}{done.stderr}")


def build_wheel(tree: Path, folder: Path) -> Path:
    """Build the wheel of a checkout into a folder. Raises ReleaseError with pip's words if it cannot be built."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ReleaseError(f"the wheel cannot be built:\n{done.stderr}")
    (wheel,) = folder.glob("ftkit-*.whl")
    return wheel


def check_wheel(wheel: Path, wanted: Published) -> None:
    """Raise ReleaseError unless the wheel is this version and its description has no relative link."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        head, _, description = archive.read(name).decode().partition("\n\n")
    if f"Version: {wanted.version}" not in head.splitlines():
        raise ReleaseError(f"{wheel.name} does not say that it is version {wanted.version}")
    if found := LINK.search(description):
        raise ReleaseError(f"{wheel.name}: its description has a relative link, {found[2]}")


def release(
    root: Path, wanted: Published, dry_run: bool = False, build: Callable[[Path, Path], Path] = build_wheel
) -> list[str]:
    """Release `wanted` from the checkout `root` and return what was made, a line each; with `dry_run` keep nothing.

    build: makes the wheel of a checkout in a folder. Raises ReleaseError before anything in the checkout changes.
    """
    if found := problems(root, wanted, dry_run):
        raise ReleaseError("\n".join(found))
    day = datetime.date.today().isoformat()
    with tempfile.TemporaryDirectory(prefix="ftkit-release-") as folder:
        tree = Path(folder, "tree")
        git(root, "worktree", "add", "--quiet", "--detach", str(tree), "HEAD")
        try:
            write_version(tree, wanted, day)
            run_build(tree, "--stamp")
            run_build(tree, "--check")
            commit = commit_all(tree, f"Release {wanted.version}")
            changed = git(tree, "diff", "--shortstat", "HEAD~1")
            wheel = build(tree, Path(folder, "wheel"))
            check_wheel(wheel, wanted)
            tags = {wanted.tag: commit}
            if wanted.on_github:
                run_build(tree, "--colab", "notebooks")
                tags[wanted.colab_tag] = commit_all(tree, f"Notebooks of {wanted.version} as Colab opens them")
            if dry_run:
                return [f"would tag {', '.join(tags)}", f"would commit {changed}", f"would build {wheel.name}"]
            git(root, "merge", "--quiet", "--ff-only", commit)
            for tag, tagged in tags.items():
                git(root, "tag", "--annotate", "--message", f"ftkit {wanted.version}", tag, tagged)
            (root / "dist").mkdir(exist_ok=True)
            shutil.copy(wheel, root / "dist")
        finally:
            git(root, "worktree", "remove", "--force", str(tree))
    branch = git(root, "branch", "--show-current")
    return [f"committed {changed}", f"dist/{wheel.name}", f"publish with: git push origin {branch} {' '.join(tags)}"]


def commit_all(tree: Path, message: str) -> str:
    """Commit every change of a checkout and return the commit."""
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--no-verify", "--message", message)
    return git(tree, "rev-parse", "HEAD")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version", help="the version to release, such as 0.2.0")
    parser.add_argument("--repository", help="its address from now on (the one in pyproject.toml)")
    parser.add_argument("--dry-run", action="store_true", help="do all of it, and keep nothing")
    given = parser.parse_args(arguments)
    wanted = replace(read_project(ROOT), version=given.version)
    if given.repository:
        wanted = replace(wanted, repository=given.repository)
    try:
        print("\n".join(release(ROOT, wanted, given.dry_run)))
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
