"""Count what the ranks send each other: `with CountCollectives() as sent: …; sent.counts`."""

import ctypes
import gc
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from torch.utils._python_dispatch import TorchDispatchMode

NAMES = {  # torch's operators -> what torch.distributed calls them
    "_allgather_base_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "allreduce_": "all_reduce",
    "broadcast_": "broadcast",
}


class CountCollectives(TorchDispatchMode):
    """`counts` maps each collective to the number of times that this rank entered it inside the block.

    torch's own CommDebugMode cannot follow two forward passes of one model in one block, as accumulation has them.
    """

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == "c10d":
            name = operator.__name__.split(".")[0]
            self.counts[NAMES.get(name, name)] += 1
        return operator(*args, **(kwargs or {}))


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
