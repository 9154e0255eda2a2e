"""Live ranks: outputs in order, failures in seconds and named, and no process left however the notebook ends."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from ftcourse.live_ranks import cluster, live, worker
from ftcourse.live_ranks.cluster import FOLDER
from ftcourse.live_ranks.guard import marked_processes
from ftcourse.live_ranks.live import RankError, start_ranks
from ftcourse.live_ranks.worker import tcp_connections
from tests import warm
from tests.ftkit.distributed.processes import gone

TIMEOUT = 6.0  # seconds that a rank waits for another one in a collective
START = 120.0  # seconds at most; about 8 on two cores with nothing else to do, and tests run beside other tests


@pytest.fixture(scope="module")
def ranks():
    """Started as in a JupyterLab that is a background job: SIGINT is inherited as ignored, by the ranks as well."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        started = start_ranks(2)
    finally:
        signal.signal(signal.SIGINT, before)
    with started:
        started.timeout = TIMEOUT
        started.join()
        started.run("import os, torch, torch.distributed as dist")
        yield started


def test_every_rank_knows_who_it_is_and_prints_in_order(ranks):
    assert ranks.get("(rank, world_size, mesh.size(), os.environ['OMP_NUM_THREADS'])") == [
        (rank, 2, 2, "1") for rank in range(2)
    ]
    assert ranks.show("if rank == 0:\n    __import__('time').sleep(0.3)\nprint('one')\nrank * 10") == (
        "[rank 0] one\n[rank 0] 0\n[rank 1] one\n[rank 1] 10\n"
    )
    assert ranks.run("x = torch.ones(1)\ndist.all_reduce(x)\nx.item()") == ["2.0\n", "2.0\n"]


def test_a_failure_on_one_rank_reaches_all_within_seconds_and_names_the_line(ranks):
    ranks.run("x = torch.ones(1)")
    start = time.monotonic()
    with pytest.raises(RankError) as error:
        ranks.run("if rank == 1:\n    raise ValueError('no good')\ndist.all_reduce(x)")
    assert time.monotonic() - start < TIMEOUT - 1  # not what gloo's own time-out would have taken
    said = str(error.value)
    assert said.startswith("rank 1 failed in line 2 of the cell:\n    raise ValueError('no good')\nValueError: no good")
    assert "rank 0 waited in all_reduce (line 3) and was aborted." in said and "re-initialised" in said
    assert error.value._render_traceback_() == [f"RankError: {said}"]
    assert ranks.run("dist.all_reduce(x)\nx.item()") == ["2.0\n", "2.0\n"]


@pytest.mark.thorough
def test_without_hanging_up_the_others_would_wait_for_their_time_out(ranks, monkeypatch):
    """The mutation: nobody closes a connection, and the failure takes as long as gloo's time-out."""
    monkeypatch.setattr(worker, "hang_up", os.getpid)
    start = time.monotonic()
    with pytest.raises(RankError, match="rank 0 failed in line 3"):
        ranks.run("x = torch.ones(1)\nif rank == 1: raise ValueError('no good')\ndist.all_reduce(x)")
    assert time.monotonic() - start > TIMEOUT - 1


def test_a_rank_that_skips_a_collective_is_named_when_time_is_up(ranks):
    start = time.monotonic()
    with pytest.raises(RankError, match="until its time was up; rank 1 never came there"):
        ranks.run("x = torch.ones(1)\nif rank == 0:\n    dist.all_reduce(x)")
    assert time.monotonic() - start < 4 * TIMEOUT


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("a = 1\nnope", "line 2 of the cell:\n    nope\nNameError: name 'nope'"),
        ("y = = 2", r"line 1 of the cell:\n    y = = 2\nSyntaxError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (
            "import torch.nn.functional as F\nF.cross_entropy(1, 2)",
            "F.cross_entropy.*\n  inside cross_entropy\nTypeError",
        ),
    ],
)
def test_one_mistake_of_all_ranks_is_told_once_and_changes_nothing(ranks, code, message):
    meetings = ranks._meetings
    with pytest.raises(RankError, match=message) as error:
        ranks.run(code)
    assert str(error.value).startswith("ranks 0 and 1 failed in line") and "anew" not in str(error.value)
    assert ranks._meetings == meetings


def test_different_failures_are_told_apart(ranks):
    with pytest.raises(RankError) as error:
        ranks.run("1 / 0 if rank else [][1]")
    said = str(error.value)
    assert "rank 0 failed" in said and "IndexError" in said and "rank 1 failed" in said and "ZeroDiv" in said


# What rank 1 does: it lets this process be interrupted, as by the stop button, once the cell runs on all ranks.
STOPPED = f"""
import os, signal, time
if rank:
    LOSE_THE_FIRST
    time.sleep(1)
    os.kill({os.getpid()}, signal.SIGINT)
    time.sleep(60)
dist.barrier()
"""
LOSE = "signal.signal(signal.SIGINT, lambda *_: signal.signal(signal.SIGINT, signal.default_int_handler))"


@pytest.fixture
def in_a_cell():
    """An interrupt raises KeyboardInterrupt, as ipykernel sees to while a cell runs, whatever it has inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("first", ["pass", LOSE], ids=["heard", "lost"])
def test_an_interrupt_reaches_ranks_that_wait(ranks, in_a_cell, first):
    start = time.monotonic()
    with pytest.raises(RankError, match="KeyboardInterrupt"):
        ranks.run(STOPPED.replace("LOSE_THE_FIRST", first))
    assert time.monotonic() - start < 25  # not when the sleep ends
    assert ranks.get("rank") == [0, 1]


@pytest.mark.thorough
def test_among_four_a_failure_reaches_those_who_wait_for_the_ones_who_wait():
    with start_ranks(4, timeout=60) as four:
        four.run("import torch, torch.distributed as dist; x = torch.ones(1)")
        start = time.monotonic()
        with pytest.raises(RankError) as error:
            four.run("if rank == 1: raise ValueError('no good')\ndist.all_reduce(x)")
        assert time.monotonic() - start < 30
        said = str(error.value)
        assert said.startswith("rank 1 failed") and all(f"rank {r} waited" in said for r in (0, 2, 3))
        assert four.get("(dist.all_reduce(x.fill_(rank)), x.item())[1]") == [6.0] * 4


def test_one_rank_is_enough_and_two_sets_live_side_by_side(ranks):
    with start_ranks(1) as alone:
        assert alone.get("(rank, world_size)") == [(0, 1)] and ranks.get("rank") == [0, 1]
        assert alone.run("print('ends without a newline', end='')") == ["ends without a newline"]
        folder, pids = alone._folder, [p.pid for p in marked_processes(FOLDER, alone._folder)]
    assert gone(pids) and not os.path.exists(folder) and repr(alone) == "LiveRanks(stopped)"
    alone.stop()
    with pytest.raises(RankError, match=r"the ranks were stopped\. Start again"):
        alone.run("1")


@pytest.mark.thorough
def test_a_rank_that_never_joins_and_one_that_is_killed():
    start = time.monotonic()
    with start_ranks(2) as ranks:
        assert time.monotonic() - start < START
        ranks.timeout = 3.0
        pids = ranks.get("__import__('os').getpid()")
        os.kill(pids[1], signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(RankError, match=r"^rank 1 did not join within 3 s.* Start again"):
            ranks.join()
        assert time.monotonic() - start < 3 + live.IMPORTING + 15
        os.kill(pids[1], signal.SIGKILL)
        start = time.monotonic()
        for _ in range(2):
            with pytest.raises(RankError, match=r"^rank 1's process has ended: .* Start again"):
                ranks.run("1")
        assert time.monotonic() - start < 15
    assert gone(pids)


PROGRAM = """
import sys, time
sys.executable = sys.argv[2]  # what it starts
from ftcourse.live_ranks.live import start_ranks
ranks = start_ranks(2)
print(*ranks.get("__import__('os').getpid()"), flush=True)
print(*ranks.get("__import__('os').environ['IPYTHONDIR']"), flush=True)
if sys.argv[1] == "waits":
    time.sleep(600)
"""


@pytest.mark.parametrize("end", ["exits", "waits"])
def test_ranks_talk_and_write_where_they_should_and_none_outlives_its_notebook(end):
    """And nothing is printed at exit; of an interpreter itself, since a fork skips the end of one."""
    command = [warm.COLD if end == "exits" else sys.executable, "-c", PROGRAM, end, sys.executable]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pids = list(map(int, process.stdout.readline().split()))
    assert len(pids) == 2
    (own_folder,) = set(process.stdout.readline().split())
    family = [psutil.Process(pid).environ()[FOLDER] for pid in pids]
    assert family == [own_folder] * 2
    if end == "waits":
        processes = marked_processes(FOLDER, own_folder)
        connected = [connections for p in processes if (connections := tcp_connections(p))]
        open_to = {c.laddr.ip for each in connected for c in each if c.status == psutil.CONN_LISTEN}
        assert len(connected) >= 3 and open_to == {"127.0.0.1"}
        process.kill()  # SIGKILL: no atexit, no finally
    left, said = process.communicate(timeout=60)
    assert (left, said) == ("", "")
    assert process.returncode == (0 if end == "exits" else -signal.SIGKILL)
    assert gone(pids)
    deadline = time.monotonic() + 20
    while marked_processes(FOLDER, own_folder) or os.path.exists(own_folder):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_in_ipython_px_runs_on_the_ranks_that_were_started_last(ranks):
    from IPython import get_ipython
    from IPython.testing.globalipapp import start_ipython

    shell = get_ipython() or start_ipython()
    ranks.register_magic()
    from IPython.utils.capture import capture_output

    with capture_output() as captured:
        shell.run_cell_magic("px", "", "rank + 1\n")
    assert captured.stdout == "[rank 0] 1\n[rank 1] 2\n"
    refused = "^%%px takes no options but --raises, and this has --targets 0: .* on all ranks, .*; write `if rank"
    with pytest.raises(RankError, match=refused):
        shell.run_cell_magic("px", "--targets 0", "ran = 1\n")
    assert ranks.get("'ran' in globals()") == [False, False]

    # Lines are those of the cell in the notebook, which begins with %%px, and a function of another cell is no line.
    shell.run_cell_magic("px", "", "def first():\n    raise ValueError('in a function')\n")
    with pytest.raises(RankError, match=r"failed in line 3 of the cell:\n    first\(\)\n  inside first\nValueError"):
        shell.run_cell_magic("px", "", "x = 1\nfirst()\n")
    with capture_output() as captured:
        shown = shell.run_cell("%%px --raises\nnope\n")
    assert "RankError: ranks 0 and 1 failed in line 2 of the cell:" in captured.stdout and shown.success
    with pytest.raises(AssertionError, match="nothing was raised"):
        shell.run_cell_magic("px", "--raises", "1\n")


def test_before_any_ranks_are_started_px_says_what_to_run():
    code = (
        "from IPython.testing.globalipapp import start_ipython; shell = start_ipython();"
        "import ftcourse.live_ranks.live; shell.run_cell_magic('px', '', '1')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "RankError: no ranks have been started yet: run the cell with ranks = start_ranks(...) first" in done.stderr


@pytest.mark.parametrize(
    ("setting", "value", "instead"),
    [("platform", "emscripten", "JupyterLab or Colab instead"), ("gloo", False, "use Linux, macOS or WSL 2")],
)
def test_where_it_cannot_work_one_sentence_says_what_to_do(monkeypatch, setting, value, instead):
    if setting == "platform":
        monkeypatch.setattr(cluster.sys, "platform", value)
    else:
        monkeypatch.setattr("torch.distributed.is_gloo_available", lambda: value)
    with pytest.raises(RankError, match=instead):
        start_ranks(2)


def test_no_rank_at_all_is_refused():
    with pytest.raises(ValueError, match="at least 1 rank"):
        start_ranks(0)


@pytest.mark.thorough
def test_processes_that_do_not_start_in_time(monkeypatch):
    """An engine is registered at its second heartbeat, which these wait for."""
    monkeypatch.setattr(cluster, "CONTROLLER", [cluster.CONTROLLER[0], "--HeartMonitor.period=60000"])
    monkeypatch.setattr(cluster, "STARTING", 1)
    with pytest.raises(RankError, match="did not start within 1 s"):
        start_ranks(2)


def test_a_failure_says_what_it_is():
    outcome = worker.run_cell("print('before')\nraise RuntimeError('gloo/pair.cc Timed out waiting 5ms')")
    assert outcome.text == "before\n" and outcome.failure.timed_out and not outcome.failure.aborted
    outcome = worker.run_cell("raise RuntimeError('gloo/pair.cc: Connection closed by peer')")
    assert outcome.failure.aborted and outcome.failure.line == 1


def test_connections_are_found_by_the_old_name_of_the_method_too():
    """psutil 5, which Colab has, calls it `connections`."""
    old = type("Process5", (), {"connections": lambda self, kind: [kind]})()
    new = type("Process6", (), {"net_connections": lambda self, kind: [kind, "new"], "connections": None})()
    assert tcp_connections(old) == ["tcp"] and tcp_connections(new) == ["tcp", "new"]
