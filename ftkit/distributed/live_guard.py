"""The end of live ranks, however their notebook ends: `python -m ftkit.distributed.live_guard FOLDER`.

A process of its own that reads a pipe from the kernel. The pipe closes when the kernel stops the ranks, when it
exits, and when it is killed; the guard then ends every process of the folder's cluster and removes the folder.
"""

import contextlib
import shutil
import sys
import time

import psutil

SEEN_EMPTY = 3  # looks without a process: one that was starting itself may have been missed by the first


def cluster_processes(folder: str) -> list[psutil.Process]:
    """All processes of the cluster in `folder`: ipyparallel names it in the environment of each."""
    found = []
    for process in psutil.process_iter():
        # Other people's processes may not be looked into, and some end while we look.
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("IPP_PROFILE_DIR") == folder and process.pid != psutil.Process().pid:
                found.append(process)
    return found


def end_cluster(folder: str) -> None:
    """Kill the cluster's processes, not ask them: a rank inside a collective does not listen.

    A zombie has no environment and so is not seen again.
    """
    empty = 0
    while empty < SEEN_EMPTY:
        processes = cluster_processes(folder)
        empty = 0 if processes else empty + 1
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.stdin.read()
    end_cluster(sys.argv[1])
