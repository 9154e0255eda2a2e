"""End what a notebook started, however the notebook ends: `python -m ftcourse.live_ranks.guard NAME VALUE`.

A process of its own that reads a pipe from the kernel. The pipe closes when the kernel is done with what it started,
when it exits, and when it is killed; the guard then ends every process whose environment says NAME=VALUE, children of
children too, and removes the folder VALUE with --remove.
"""

import contextlib
import shutil
import subprocess
import sys
import time

import psutil

SEEN_EMPTY = 3  # looks without a process: one that was starting itself may have been missed by the first


def start_guard(name: str, value: str, *options: str) -> subprocess.Popen:
    """Start the guard; give what it guards NAME=VALUE in its environment. In a session of its own: see `end_guard`."""
    command = [sys.executable, "-m", "ftcourse.live_ranks.guard", name, value, *options]
    # An interrupt of the kernel goes to every process of its group, and must not end the guard.
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def end_guard(guard: subprocess.Popen) -> None:
    """Let the guard end what it guards, and wait until that is done. A second call does nothing."""
    guard.stdin.close()
    guard.wait()


def marked_processes(name: str, value: str) -> list[psutil.Process]:
    """All processes but this one whose environment has NAME=VALUE from their start."""
    found = []
    for process in psutil.process_iter():
        # Other people's processes may not be looked into, and some end while we look.
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(name) == value and process.pid != psutil.Process().pid:
                found.append(process)
    return found


def end_marked(name: str, value: str) -> None:
    """Kill these processes by SIGKILL, because a rank inside a collective handles no other signal.

    A zombie has no environment and so is not seen again.
    """
    empty = 0
    while empty < SEEN_EMPTY:
        processes = marked_processes(name, value)
        empty = 0 if processes else empty + 1
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.05)


if __name__ == "__main__":
    sys.stdin.read()
    end_marked(*sys.argv[1:3])
    if sys.argv[3:] == ["--remove"]:
        shutil.rmtree(sys.argv[2], ignore_errors=True)
