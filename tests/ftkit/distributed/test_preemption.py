"""A signal sets a flag, all ranks agree on it, and under torchrun a run saves and ends by itself."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ftkit.distributed.device import pick_device
from ftkit.distributed.launch import free_port
from ftkit.distributed.mesh import DistributedContext
from ftkit.distributed.preemption import SIGNALS, PreemptionHandler

ALONE = DistributedContext(0, 1, pick_device(), None)
# Each rank says what it was asked, and leaves; only rank 1 slows down, so that the signal finds them apart.
PROGRAM = """
import os, sys, time
from pathlib import Path
from ftkit.distributed.launch import run_distributed
from ftkit.distributed.preemption import PreemptionHandler

def main(context):
    with PreemptionHandler() as preemption:
        for step in range(3000):
            time.sleep(0.02 * context.rank)
            if preemption.requested(context):
                break
            if not step:
                Path(sys.argv[1], f"new-{context.rank}").write_text(str(os.getpid()))
                Path(sys.argv[1], f"new-{context.rank}").rename(Path(sys.argv[1], f"started-{context.rank}"))
    Path(sys.argv[1], f"left-{context.rank}").write_text(str(step))

run_distributed(main)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_only_sets_the_flag(number):
    before = signal.getsignal(number)
    with PreemptionHandler() as preemption:
        assert not preemption.requested(ALONE)
        signal.raise_signal(number)
        assert preemption.requested(ALONE)
    assert signal.getsignal(number) is before


def test_in_another_thread_nothing_is_set_up():
    seen = []

    def work():
        with PreemptionHandler() as preemption:
            seen.append(preemption.requested(ALONE))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM to send")
@pytest.mark.parametrize("target", ["torchrun", "rank 1"])
def test_under_torchrun_all_ranks_leave_at_the_same_step(tmp_path, target):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += [f"--master-port={free_port()}", str(tmp_path / "program.py"), str(tmp_path)]
    # As in a background job: SIGINT is inherited as ignored, and must not take these signals with it.
    process = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started-1").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        if target == "torchrun":
            process.send_signal(signal.SIGTERM)
        else:
            os.kill(int((tmp_path / "started-1").read_text()), signal.SIGUSR1)
        # torchrun, when it was signalled itself, reports that; its ranks have ended in peace all the same.
        assert (process.wait(30) == 0) == (target == "rank 1")
    finally:
        process.kill()
    left = [(tmp_path / f"left-{rank}").read_text() for rank in (0, 1)]
    assert left[0] == left[1] and int(left[0]) < 2999
