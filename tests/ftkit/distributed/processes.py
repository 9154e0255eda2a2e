"""Have processes ended?"""

import time

import psutil


def gone(pids, within: float = 20.0) -> bool:
    """Whether all processes have ended (or are zombies that nobody has waited for) within some seconds."""
    end = time.monotonic() + within
    while any(running(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(running(pid) for pid in pids)


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
