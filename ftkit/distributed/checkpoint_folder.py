"""A folder of checkpoints on disk: find the newest complete one, check it, add and remove one."""

import errno
import json
import os
import re
import shutil
import warnings
from pathlib import Path

STEP = re.compile(r"step-(\d+)$")
ABOUT = "about.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: damaged, or another run's. The message names it and the remedy."""


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint under `folder`; None if no checkpoint was ever finished.

    A damaged one (a file missing or short) is skipped with a warning if an older one is complete. Raises
    CheckpointError naming the damaged file if none is, because starting from nothing would hide the loss.
    """
    damaged = []
    for path in step_folders(folder):
        if (damage := find_damage(path)) is None:
            for each in damaged:
                warnings.warn(f"{each}; continuing from {path.name}", stacklevel=2)
            return path
        damaged.append(damage)
    if damaged:
        raise CheckpointError(f"{damaged[0]}: restore the file, or remove the folder {folder} to start from nothing")
    return None


def check_undamaged(path: Path) -> None:
    """Raise CheckpointError if a file is missing or its size has changed since it was written."""
    if damage := find_damage(path):
        raise CheckpointError(f"{damage}: restore the file, or take another checkpoint")


def check_same_run(path: Path, expected: dict) -> None:
    """Raise CheckpointError if the checkpoint's metadata differ from `expected`, in the keys that this has."""
    saved = json.loads((path / ABOUT).read_text())
    for key, ours in json.loads(json.dumps(expected)).items():
        theirs = saved.get(key)
        if ours == theirs:
            continue
        shown = [repr(theirs), repr(ours)]
        if key in ("parameters", "trained"):
            name = min(set(ours) ^ set(theirs) or {name for name in ours if ours[name] != theirs[name]})
            shown = [f"{len(each)} ({name}: {_describe(each, name)})" for each in (theirs, ours)]
        raise CheckpointError(
            f"{path} belongs to another run: its {key} {'are' if key == 'parameters' else 'is'} {shown[0]}, and here "
            f"{shown[1]}: resume with the settings that it was written with, or start a new run in another folder"
        )


def step_folders(folder: Path) -> list[Path]:
    """The folders of checkpoints, newest first."""
    return sorted((path for path in Path(folder).glob("step-*") if STEP.search(path.name)), key=step_of)[::-1]


def step_of(path: Path) -> int:
    return int(STEP.search(path.name)[1])


def find_damage(path: Path, files: dict[str, int] | None = None) -> str | None:
    """Describe the first file that is missing or whose size differs from `files`, by default the recorded sizes."""
    if files is None:
        try:
            files = json.loads((path / ABOUT).read_text())["files"]
        except (OSError, ValueError, KeyError):
            return f"{path / ABOUT} is missing or unreadable"
    for name, size in files.items():
        try:
            found = (path / name).stat().st_size
        except OSError:
            return f"{path / name} is missing"
        if found != size:
            return f"{path / name} has {found:,} bytes of {size:,}"
    return None


def empty_folder(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def commit(
    final: Path, metadata: dict, reports: list[tuple[str, dict[str, int]]], keep: int, kept: int | None = None
) -> None:
    """Turn `step-N.incomplete` into `step-N`, and remove all but the newest `keep` checkpoints and that of step `kept`.

    Args:
        final: the path of `step-N`.
        metadata: what to write into its about.json.
        reports: of each rank, why writing failed (or "") and the sizes of the files it wrote.
        keep: how many checkpoints to keep; 0 is all.

    Raises OSError if a rank could not write or a file is not there; older checkpoints are then left alone.
    """
    folder, temporary = final.parent, final.with_suffix(".incomplete")
    if failures := [cause for cause, _ in reports if cause]:
        free = shutil.disk_usage(folder).free
        shutil.rmtree(temporary, ignore_errors=True)
        older = latest_checkpoint(folder)
        raise OSError(
            errno.ENOSPC if "No space left" in failures[0] else errno.EIO,
            f"the checkpoint {final} could not be written: {failures[0]} ({free / 1e6:,.0f} MB were free). "
            + (
                f"No checkpoint is complete: make room on that disk, remove {folder.parent} and start again"
                if older is None
                else f"The newest complete checkpoint is {older.name}: make room on that disk and resume"
            ),
        )
    files = {name: size for _, own in reports for name, size in own.items()}
    files[".metadata"] = (temporary / ".metadata").stat().st_size
    if damage := find_damage(temporary, files):
        raise OSError(errno.EIO, f"{damage}: do all machines see the same folder? Put the output on a shared one")
    with (temporary / ABOUT).open("w") as file:
        json.dump({**metadata, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync(temporary)
    if final.exists():  # damaged, else this run would have resumed from it
        remove(final)
    temporary.rename(final)
    sync(folder)
    older = [path for path in step_folders(folder) if step_of(path) <= metadata["step"]]
    stays = {*older[: keep or None], *(path for path in older if step_of(path) == kept)}
    for other in folder.iterdir():
        if other not in stays:
            remove(other)


def remove(path: Path) -> None:
    """Remove a checkpoint, renamed first so that a crash half-way does not leave it under its name."""
    gone = path.with_suffix(".removed")
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def sync(folder: Path) -> None:
    """Make names that were just created survive a power cut; Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _describe(each: dict | list, name: str) -> str:
    if name not in each:
        return "not among them"
    return f"of shape {each[name]}" if isinstance(each, dict) else "among them"
