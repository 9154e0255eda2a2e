"""How much memory of its own a process needs at most while it does something."""

import ctypes
import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

INTERVAL = 0.002  # seconds between two looks


@contextmanager
def peak_own_bytes() -> Iterator[list[int]]:
    """Yield a list that receives, at the end, the peak of this process's own bytes above those at the start.

    Own are the pages that nobody shares with it: memory for tensors. Pages of files that are mapped into the process
    do not count on Linux, for all processes of a machine share them and the system may drop them at any time; other
    systems do not tell them apart.
    """
    gc.collect()
    _give_back_freed()
    start, highest, done, peak = _own(), 0, threading.Event(), []

    def watch() -> None:
        nonlocal highest
        while not done.wait(INTERVAL):
            highest = max(highest, _own())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak.append(max(highest, _own()) - start)


def _give_back_freed() -> None:
    """Return freed pages to the system where the allocator can (glibc): a tensor laid into them would go unseen."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _own() -> int:
    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)
