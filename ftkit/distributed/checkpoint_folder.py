"""A folder of checkpoints on disk: which of them is whole, whose it is, and how one comes and goes."""

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
    """The newest whole checkpoint under `folder`; None where no checkpoint was ever finished.

    A damaged one (a file missing or short) is passed over with a warning where an older one is whole. Raises
    CheckpointError naming the file where none is: starting from nothing would hide the loss.
    """
    damaged = []
    for path in step_folders(folder):
        if (damage := find_damage(path)) is None:
            for each in damaged:
                warnings.warn(f"{each}; going on from {path.name}", stacklevel=2)
            return path
        damaged.append(damage)
    if damaged:
        raise CheckpointError(f"{damaged[0]}: restore the file, or remove the folder {folder} to start from nothing")
    return None


def check_undamaged(path: Path) -> None:
    """Raise CheckpointError where a file is missing or has another size than when it was written."""
    if damage := find_damage(path):
        raise CheckpointError(f"{damage}: restore the file, or take another checkpoint")


def check_same_run(path: Path, mine: dict) -> None:
    theirs = json.loads((path / ABOUT).read_text())
    for key in mine:
        ours, saved = json.loads(json.dumps(mine[key])), theirs.get(key)
        if ours == saved:
            continue
        if key in ("parameters", "trained"):
            differing = set(ours) ^ set(saved) or {name for name in ours if ours[name] != saved[name]}
            name = min(differing)
            told = [f"{len(each)} ({name}: {_shown(each, name)})" for each in (saved, ours)]
        else:
            told = [repr(saved), repr(ours)]
        raise CheckpointError(
            f"{path} is another run's: its {key} {_be(key)} {told[0]}, and here {told[1]}: "
            "resume with the settings that it was written with, or start anew in another folder"
        )


def _shown(each: dict | list, name: str) -> str:
    if name not in each:
        return "not among them"
    return f"of shape {each[name]}" if isinstance(each, dict) else "among them"


def _be(key: str) -> str:
    return "are" if key == "parameters" else "is"


def step_folders(folder: Path) -> list[Path]:
    return sorted((path for path in Path(folder).glob("step-*") if STEP.search(path.name)), key=step_of)[::-1]


def step_of(path: Path) -> int:
    return int(STEP.search(path.name)[1])


def find_damage(path: Path, files: dict[str, int] | None = None) -> str | None:
    """The first file of a checkpoint that is missing or has another size than when it was written."""
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


def commit(final: Path, about: dict, reports: list[tuple[str, dict[str, int]]], keep: int) -> None:
    """Make `step-N.incomplete` the whole `step-N`, and remove all but the newest `keep`.

    `about` is what to write into it, `reports` each rank's cause of failure, if any, and its files with their sizes.
    Raises OSError where a rank could not write, or a file is not there; older checkpoints stay as they are.
    """
    folder, temporary = final.parent, final.with_suffix(".incomplete")
    if failures := [cause for cause, _ in reports if cause]:
        free = shutil.disk_usage(folder).free
        shutil.rmtree(temporary, ignore_errors=True)
        older = latest_checkpoint(folder)
        raise OSError(
            errno.ENOSPC if "No space left" in failures[0] else errno.EIO,
            f"the checkpoint {final} could not be written: {failures[0]} ({free / 1e6:,.0f} MB were free). "
            f"{'No checkpoint was' if older is None else f'{older.name}, before it, is'} there and whole: "
            "make room on that disk and resume",
        )
    files = {name: size for _, own in reports for name, size in own.items()}
    files[".metadata"] = (temporary / ".metadata").stat().st_size
    if damage := find_damage(temporary, files):
        raise OSError(errno.EIO, f"{damage}: do all machines see the same folder? Put the output on a shared one")
    with (temporary / ABOUT).open("w") as file:
        json.dump({**about, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync(temporary)
    if final.exists():  # damaged, else this run would have gone on from it
        remove(final)
    temporary.rename(final)
    sync(folder)
    kept = [path for path in step_folders(folder) if step_of(path) <= about["step"]][:keep]
    for other in folder.iterdir():
        if other not in kept:
            remove(other)


def remove(path: Path) -> None:
    """Remove a checkpoint; a crash half-way through does not leave it under its name."""
    gone = path.with_suffix(".removed")
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def sync(folder: Path) -> None:
    """Make names that were just created survive a power cut; Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
