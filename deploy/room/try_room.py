"""Try a folder of make_room.py as a learner's machine would, with the network off, and time it.

    python deploy/room/try_room.py [FOLDER]     default: build/room

In a network namespace of its own, where only loopback exists (Linux, `unshare`): checksums, start.sh into a new home,
`ftkit machine`, then notebook 01 with its solutions in place, whose checkers all have to say "Right".
"""

import argparse
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from make_room import ROOT, wrong_files

INSIDE = "FTKIT_ROOM_IS_OFFLINE"
NOTEBOOK, EXERCISES = "01_gradient_masks.ipynb", 3
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1  # of <linux/sockios.h> and <net/if.h>


def go_offline() -> None:
    """Run this program again where there is no network but loopback. Raises SystemExit with its status."""
    if shutil.which("unshare") is None:
        sys.exit("error: needs `unshare` of util-linux to switch the network off")
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, __file__, *sys.argv[1:]]
    sys.exit(subprocess.call(command, env=os.environ | {INSIDE: "1"}))


def open_loopback() -> None:
    """Switch loopback on, over which a notebook talks to its kernel, and make sure that nothing else is up."""
    with socket.socket() as any_socket:
        for _, name in socket.if_nameindex():
            asked = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16sh14x", name.encode(), 0))
            if name != "lo" and struct.unpack("16sh14x", asked)[1] & IFF_UP:
                sys.exit(f"error: the network is not off: {name} is up")
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def step(what: str, command: list, home: Path) -> str:
    """Run a command as a new user would, print its seconds, and return what it printed. Exits where it fails."""
    environment = {"HOME": str(home), "FTKIT_HOME": str(home / "ftkit"), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    environment |= {"PYTHON": sys.executable, "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    start = time.perf_counter()
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    print(f"{what}: {time.perf_counter() - start:.0f} s", flush=True)
    if done.returncode:
        sys.exit(f"error: {what} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "build" / "room", help="default: build/room")
    room = parser.parse_args().folder.resolve()
    if not (room / "start.sh").is_file():
        sys.exit(f"error: no start.sh in {room}: make room")
    if INSIDE not in os.environ:
        go_offline()
    open_loopback()
    if wrong := wrong_files(room):
        sys.exit(f"error: {len(wrong)} files are not as they were made, the first {wrong[0]}")
    with tempfile.TemporaryDirectory(prefix="room-") as folder:
        home = Path(folder)
        programs = home / "ftkit" / "venv" / "bin"
        step("install", ["sh", room / "start.sh", "install"], home)
        print(step("ftkit machine", [programs / "ftkit", "machine"], home).rstrip())
        step("solutions", [programs / "ftkit", "notebooks", home / "solved", "--solutions", "--only", "01"], home)
        notebook = home / "solved" / NOTEBOOK
        step(f"{NOTEBOOK}, solved", [programs / "jupyter", "execute", "--inplace", notebook], home)
        right = notebook.read_text(encoding="utf-8").count('"Right: ')
        print(f"{right} of {EXERCISES} checkers say Right")
    return 0 if right == EXERCISES else 1


if __name__ == "__main__":
    sys.exit(main())
