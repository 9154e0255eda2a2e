"""Instruments of the lessons: `CountCollectives` and `flight_record` see collectives, `peak_uss` a process's memory."""

import ctypes
import gc
import json
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


def flight_record() -> list[dict]:
    """This process's entries in torch's flight recorder of collectives on the CPU, the oldest first.

    Each has `collective_seq_id`, counted per process group, `profiling_name`, `input_sizes` and more.
    """
    from torch._C._distributed_c10d import _dump_fr_trace_json  # private; tests/ftcourse/test_collectives.py

    return json.loads(_dump_fr_trace_json()).get("entries", [])


INTERVAL = 0.002  # seconds between two measurements


@contextmanager
def peak_uss() -> Iterator[list[int]]:
    """Yield a list that receives, at the end, by how many bytes the unique set size rose above that at the start.

    The unique set size is the memory that no other process shares, such as tensors. On Linux pages of mapped files do
    not count, because processes share them and the system may drop them; other systems count them too.
    """
    gc.collect()
    _trim_heap()
    start, highest, done, peak = _uss(), 0, threading.Event(), []

    def watch() -> None:
        nonlocal highest
        while not done.wait(INTERVAL):
            highest = max(highest, _uss())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak.append(max(highest, _uss()) - start)


def _trim_heap() -> None:
    """Return freed pages to the system (glibc only), because tensors that reuse them would not be counted."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _uss() -> int:
    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)
