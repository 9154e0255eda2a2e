"""One folder from which the course installs without a network: for a room of machines, or a stick.

    python deploy/room/make_room.py                                   for machines like this one: build/room
    python deploy/room/make_room.py --machine windows --python 3.12   for other machines
    python deploy/room/make_room.py --torch cpu                       the CPU build of torch, from PyTorch's own index

It holds a wheel of everything (wheels/), the exact versions with their checksums (requirements.txt), the notebooks, and
start.sh and start.bat, which install and open JupyterLab. deploy/room/try_room.py tries it with the network off.
Run it again into the same folder: wheels that are there are not downloaded again.
"""

import argparse
import email
import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
THIS_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
THIS_MACHINE = "this"
SUMS = "SHA256SUMS"
COURSE = "ftkit[lab]"


def _linux(processor: str) -> tuple[str, ...]:
    """Wheel tags that glibc 2.28 and later can run; pip, given one tag, does not think of the older ones itself."""
    old = ("manylinux2014", "manylinux2010", "manylinux1")
    return tuple([f"manylinux_2_{n}_{processor}" for n in range(28, 4, -1)] + [f"{name}_{processor}" for name in old])


# kind of machine: (wheel tags for pip, what markers of dependencies see there)
MACHINES = {
    "linux-x86_64": (_linux("x86_64"), ("linux", "Linux", "posix", "x86_64")),
    "linux-aarch64": (_linux("aarch64"), ("linux", "Linux", "posix", "aarch64")),
    "windows": (("win_amd64",), ("win32", "Windows", "nt", "AMD64")),
    "mac-arm64": (("macosx_15_0_arm64",), ("darwin", "Darwin", "posix", "arm64")),
}


class RoomError(Exception):
    """What keeps a folder from being complete. The message says what to do."""


@dataclass(frozen=True)
class Target:
    """The machines that learners have: a key of MACHINES or THIS_MACHINE, and their Python, such as "3.12"."""

    machine: str = THIS_MACHINE
    python: str = THIS_PYTHON

    def pip_flags(self) -> list[str]:
        """What tells `pip download` to choose for these machines; nothing where they are like this one."""
        if self == Target():
            return []
        flags = ["--python-version", self.python, "--implementation", "cp"]
        tags = () if self.machine == THIS_MACHINE else MACHINES[self.machine][0]
        return flags + [part for tag in tags for part in ("--platform", tag)]

    def environment(self) -> dict[str, str]:
        """What markers such as `sys_platform == "win32"` see there. pip asks the machine that it runs on."""
        found = dict(default_environment())
        if self.python != THIS_PYTHON:
            found |= {"python_version": self.python, "python_full_version": f"{self.python}.0"}
            found["implementation_version"] = found["python_full_version"]
        if self.machine != THIS_MACHINE:
            names = ("sys_platform", "platform_system", "os_name", "platform_machine")
            found |= dict(zip(names, MACHINES[self.machine][1], strict=True))
        return found


def pip(*arguments: str | Path) -> None:
    """Run this Python's pip. Raises RoomError with its last lines where it fails."""
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RoomError(f"pip {arguments[0]} failed:\n" + "\n".join(done.stdout.splitlines()[-8:]))


def requirements_of(wheel: Path) -> list[Requirement]:
    """What a wheel says that it needs, with its markers."""
    with zipfile.ZipFile(wheel) as files:
        (name,) = [n for n in files.namelist() if n.endswith(".dist-info/METADATA") and n.count("/") == 1]
        return [Requirement(text) for text in email.message_from_bytes(files.read(name)).get_all("Requires-Dist", [])]


def read_pins(constraints: Path) -> dict[str, SpecifierSet]:
    """The versions that a file of constraints allows, by canonical name."""
    lines = [line.partition("#")[0].strip() for line in constraints.read_text(encoding="utf-8").splitlines()]
    return {canonicalize_name(r.name): r.specifier for r in map(Requirement, filter(None, lines))}


def complete(
    wheels: Path, root: str, environment: dict[str, str], pins: dict[str, SpecifierSet]
) -> tuple[set[Path], list[str]]:
    """The wheels that `root` needs in an environment, and the requirements that no wheel of the folder meets.

    A wheel of another version than `pins` allows, left from an earlier time, counts as absent.
    """
    at_hand: dict[str, list] = {}
    for path in wheels.glob("*.whl"):
        name, version, *_ = parse_wheel_filename(path.name)
        if name not in pins or pins[name].contains(version, prereleases=True):
            at_hand.setdefault(name, []).append((version, path))
    needed, missing, open_, seen = set(), [], [Requirement(root)], set()
    while open_:
        wanted = open_.pop()
        if (key := (canonicalize_name(wanted.name), str(wanted.specifier), frozenset(wanted.extras))) in seen:
            continue
        seen.add(key)
        fitting = [pair for pair in at_hand.get(key[0], []) if wanted.specifier.contains(pair[0], prereleases=True)]
        if not fitting:
            missing.append(f"{wanted.name}{wanted.specifier}")
            continue
        wheel = max(fitting)[1]
        needed.add(wheel)
        for other in requirements_of(wheel):
            contexts = [environment | {"extra": extra} for extra in (wanted.extras or {""})]
            if other.marker is None or any(map(other.marker.evaluate, contexts)):
                open_.append(other)
    return needed, missing


def fill(wheels: Path, target: Target, torch: str, project: Path = ROOT, course: str = COURSE) -> set[Path]:
    """Download what the course needs on the target into `wheels`; returns the wheels that are needed.

    Raises RoomError where something cannot be had as a wheel.
    """
    wheels.mkdir(parents=True, exist_ok=True)
    built = wheels.with_name("course")
    pip("wheel", "--no-deps", "-w", built, project)
    (wheel,) = built.glob("*.whl")
    shutil.copyfile(wheel, wheels / wheel.name)
    shutil.rmtree(built)
    constraints = project / "constraints.txt"
    fetch = ["download", "--no-deps", "--only-binary=:all:", "-d", wheels, *target.pip_flags()]
    if torch == "cpu":
        pin = next(line for line in constraints.read_text(encoding="utf-8").split() if line.startswith("torch=="))
        pip(*fetch, "--index-url", CPU_INDEX, pin)
    # Round by round, without pip's resolver: it reads the markers of dependencies as if for the machine it runs on.
    # The versions are pinned, so there is nothing to resolve.
    pins, asked = read_pins(constraints), []
    while True:
        needed, missing = complete(wheels, course, target.environment(), pins)
        if still := sorted(set(asked) & set(missing)):
            raise RoomError(f"pip brings other versions than are asked for: {', '.join(still)}; see constraints.txt")
        if not missing:
            break
        pip(*fetch, "-c", constraints, *missing)
        asked = missing
    names = [parse_wheel_filename(wheel.name)[0] for wheel in needed]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RoomError(f"two versions are asked for of {', '.join(twice)}: pin one in constraints.txt")
    return needed


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_rest(room: Path, needed: set[Path], target: Target, variant: str) -> None:
    """Write everything but the wheels: versions, notebooks, start files, and the checksums of all of it."""
    from ftcourse.copying import copy_notebooks

    lines = []
    for wheel in sorted(needed):
        name, version, *_ = parse_wheel_filename(wheel.name)
        lines.append(f"{name}=={version} --hash=sha256:{digest(wheel)}")
    (room / "requirements.txt").write_text("\n".join(sorted(lines)) + "\n", encoding="utf-8")
    copy_notebooks(room / "notebooks", variant, overwrite=True)
    for name in ("start.sh", "start.bat", "README.txt"):
        text = (HERE / name).read_text(encoding="utf-8").replace("@PYTHON@", target.python)
        newline = "\r\n" if name == "start.bat" else "\n"
        (room / name).write_text(text, encoding="utf-8", newline=newline)
    (room / "start.sh").chmod(0o755)
    files = sorted(path for path in room.rglob("*") if path.is_file() and path.name != SUMS)
    sums = "".join(f"{digest(path)}  {path.relative_to(room).as_posix()}\n" for path in files)
    (room / SUMS).write_text(sums, encoding="utf-8")


def wrong_files(room: Path) -> list[str]:
    """Files that are absent or differ from their checksum: names; none where the folder arrived whole."""
    lines = (room / SUMS).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("  ", 1) for line in lines]
    return [name for sum_, name in pairs if not (room / name).is_file() or digest(room / name) != sum_]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "room", help="default: build/room")
    parser.add_argument("--machine", choices=(THIS_MACHINE, *MACHINES), default=THIS_MACHINE, help="theirs")
    parser.add_argument("--python", default=THIS_PYTHON, help="theirs, such as 3.12 (default: this one, %(default)s)")
    parser.add_argument("--torch", choices=("default", "cpu"), default="default", help="which build (default: pip's)")
    parser.add_argument("--student", action="store_true", help="notebooks without the folded solutions")
    given = parser.parse_args(arguments)
    target = Target(given.machine, given.python)
    try:
        needed = fill(given.folder / "wheels", target, given.torch)
        write_rest(given.folder, needed, target, "student" if given.student else "shipped")
    except RoomError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in given.folder.rglob("*") if path.is_file())
    whose = f"Python {target.python}, {target.machine} machine"
    print(f"{given.folder}: {len(needed)} wheels, {size / 1e6:.0f} MB in all, for {whose}")
    for wheel in sorted(set((given.folder / "wheels").glob("*.whl")) - needed):
        print(f"not needed there: {wheel.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
