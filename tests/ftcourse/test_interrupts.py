"""What an interrupt of the notebook ends and what it leaves alone, also where SIGINT was inherited as ignored.

JupyterLab sends SIGINT to the process group of the kernel. Here the kernel is a Python with a group of its own, started
as a background job starts it (SIGINT ignored), which listens to SIGINT as ipykernel does while a cell runs.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ftcourse import runs
from ftcourse.runs import LaunchError, start
from tests.ftkit.distributed.processes import gone

pytestmark = pytest.mark.usefixtures("cold")  # who is whose child, and in whose group, is what this is about
# Each rank leaves its process id, waits for the file `go`, and says its rank.
PROGRAM = """
import os, sys, time
rank = os.environ.get("RANK", "0")
open(f"pid-{rank}.new", "w").write(str(os.getpid()))
os.rename(f"pid-{rank}.new", f"pid-{rank}")
while not os.path.exists("go"):
    time.sleep(0.05)
os.write(1, f"rank {rank}\\n".encode())
"""
KERNEL = """
import signal, subprocess, sys, time
from ftcourse import runs
signal.signal(signal.SIGINT, signal.default_int_handler)
def cell(function):
    try:
        print(sorted(line for line in function().splitlines() if line.startswith("rank")), flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    except runs.LaunchError as error:
        print("lost:", str(error).splitlines()[-1], flush=True)
"""
BACKGROUND = """
run = runs.start("program.py", ranks=RANKS)
cell(lambda: time.sleep(600))
cell(run.result)
cell(run.result)
"""
FOREGROUND = {
    "run": 'cell(lambda: runs.torchrun("program.py", ranks=1, quiet=True))',
    "program": "cell(lambda: subprocess.run([sys.executable, 'program.py']))",
    # As experiments.fault_injection does; it is killed a moment after the interrupt, before its run has ended.
    "program with a run": "cell(lambda: subprocess.run([sys.executable, 'launcher.py']))",
}
# The mutations: a run in the kernel's own process group, and one without a guard.
SHARED_GROUP = """
Popen = subprocess.Popen
subprocess.Popen = lambda *a, start_new_session=False, **k: Popen(*a, **k)
"""
NO_GUARD = """
runs.start_guard = lambda *a: subprocess.Popen(["sleep", "0"], stdin=subprocess.PIPE)
"""
# A program whose child has a session of its own, as torchrun's ranks do.
PARENT = """
import subprocess, sys
subprocess.Popen([sys.executable, "program.py"], start_new_session=True).wait()
"""
LAUNCHER = """
from ftcourse import runs
runs.start("program.py", ranks=None).result()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "launcher.py").write_text(LAUNCHER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kernel(code: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", KERNEL + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )


def started(folder: Path, ranks: int, within: float = 60.0) -> list[int]:
    """The process ids of the ranks, once all run."""
    files, end = [folder / f"pid-{rank}" for rank in range(ranks)], time.monotonic() + within
    while not all(map(Path.exists, files)) and time.monotonic() < end:
        time.sleep(0.05)
    return [int(file.read_text()) for file in files]


def interrupt(process: subprocess.Popen) -> str:
    """As the stop button does; returns the line that the kernel then prints."""
    time.sleep(0.3)  # until it waits again
    os.killpg(process.pid, signal.SIGINT)
    return process.stdout.readline().strip()


def test_a_run_survives_interrupts_of_other_cells_and_of_the_one_that_waits(folder):
    process = kernel(BACKGROUND.replace("RANKS", "2"))
    started(folder, 2)
    assert [interrupt(process), interrupt(process)] == ["interrupted", "interrupted"]
    (folder / "go").touch()
    assert process.communicate(timeout=60)[0] == "['rank 0', 'rank 1']\n" and process.returncode == 0


@pytest.mark.thorough
def test_in_the_kernels_own_group_it_would_not(folder):
    """The mutation of `start_new_session`; and the message that the learner would get."""
    process = kernel(SHARED_GROUP + BACKGROUND.replace("RANKS", "None"))
    (pid,) = started(folder, 1)
    assert interrupt(process) == "interrupted" and gone([pid])
    (folder / "go").touch()
    assert process.communicate(timeout=60)[0].count("lost: This run is lost: start it again") == 2


@pytest.mark.parametrize("what", FOREGROUND)
def test_an_interrupt_ends_what_its_cell_waits_for(folder, what):
    process = kernel(FOREGROUND[what])
    pids = started(folder, 1)
    assert interrupt(process) == "interrupted" and gone(pids)
    assert process.wait(10) == 0


@pytest.mark.thorough
@pytest.mark.parametrize("guarded", [True, False], ids=["guarded", "the mutation"])
def test_no_process_outlives_a_killed_kernel(folder, guarded):
    process = kernel(("" if guarded else NO_GUARD) + 'runs.start("parent.py", ranks=None)\ntime.sleep(600)')
    pids = started(folder, 1)
    process.kill()
    process.communicate()
    try:
        assert gone(pids, within=10 if guarded else 2) == guarded
    finally:
        (folder / "go").touch()
        assert gone(pids)


def test_a_lost_run_names_its_cell_and_starting_it_again_helps(folder, monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell

    class Notebook:
        execution_count = 7

    monkeypatch.setattr("IPython.get_ipython", Notebook)
    assert InteractiveShell  # IPython is loaded, as in a notebook
    output = folder / "output"
    run = start("-c", "import os, time; os.mkdir('output'); time.sleep(600)", ranks=None, folder=output)
    while not output.exists():
        time.sleep(0.02)
    assert "running" in repr(run)
    psutil.Process(run._process.pid).kill()
    with pytest.raises(LaunchError) as error:
        run.result()
    assert str(error.value).splitlines()[0].endswith("was ended by SIGKILL:")
    assert (
        str(error.value).splitlines()[-1]
        == "This run is lost: run the cell that started it, [7], again, then go on here."
    )
    assert output.exists() and "ended" in repr(run)
    assert start("-c", "import os; os.mkdir('output'); print(1)", ranks=None, folder=output).result() == "1\n"


def test_starting_again_ends_the_run_that_still_writes_there(folder):
    first = start("-c", "import time; time.sleep(600)", ranks=None, folder="output")
    elsewhere = start("-c", "import time; time.sleep(600)", ranks=None, folder="other")
    second = start("-c", "print(2)", ranks=None, folder="output")
    assert second.result() == "2\n" and "running" in repr(elsewhere)
    with pytest.raises(LaunchError, match="SIGKILL"):
        first.result()
    elsewhere.stop()
    elsewhere.stop()
    with pytest.raises(LaunchError, match="SIGKILL"):
        elsewhere.result()


def test_output_is_shown_when_asked_for_and_returned_each_time(folder, capsys):
    run = start("-c", "print('half an \\u00e9'.encode().decode(), end='')", ranks=None)
    assert run.result(show=True) == run.result() == "half an é" == capsys.readouterr().out


def test_time_runs_out_for_a_background_run(folder):
    run = start("-c", "print('begun', flush=True); import time; time.sleep(600)", ranks=None, timeout=1.0)
    with pytest.raises(LaunchError, match="ran for more than 1 seconds:\nbegun"):
        run.result()


def test_a_run_is_marked_for_its_guard():
    command = [sys.executable, "-c", f"import os; print(os.environ[{runs.MARK!r}])"]
    process, guard = runs.start_guarded(command, "mine", dict(os.environ), stdout=subprocess.PIPE, text=True)
    assert process.communicate()[0] == "mine\n"
    runs.end_guard(guard)
    runs.end_guard(guard)
