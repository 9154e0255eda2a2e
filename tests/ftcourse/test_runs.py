"""torchrun from a notebook: output comes back, failures say why, and no process is left behind."""

import os
import subprocess
import time

import pytest

from ftcourse.runs import LaunchError, torchrun
from ftkit.distributed.launch import free_port
from tests.ftkit.distributed.processes import gone


def write(path, text):
    path.write_text(text)
    return path


def test_every_rank_speaks_and_the_output_is_shown(tmp_path, capsys):
    # One write a line: `print` writes its line end apart, and another rank may come between.
    line = "'rank ' + os.environ['RANK'] + ' of ' + os.environ['WORLD_SIZE'] + chr(10)"
    program = write(tmp_path / "hello.py", f"import os; os.write(1, ({line}).encode())")
    said = torchrun(program, ranks=3)
    assert sorted(line for line in said.splitlines() if line.startswith("rank")) == [f"rank {r} of 3" for r in range(3)]
    assert capsys.readouterr().out == said
    assert torchrun(program, ranks=1, quiet=True).strip().endswith("rank 0 of 1")
    assert capsys.readouterr().out == ""


def test_a_failure_says_what_the_rank_said_last(tmp_path):
    program = write(tmp_path / "fail.py", "import sys; print('first'); sys.exit('the disk is full')")
    with pytest.raises(LaunchError, match="the disk is full") as error:
        torchrun(program, ranks=1, quiet=True)
    assert "elastic" not in str(error.value) and "on 1 rank(s) failed" in str(error.value)


def test_time_runs_out_and_nobody_is_left(tmp_path, monkeypatch):
    program = write(
        tmp_path / "hang.py",
        f"import os, time; open(f'{tmp_path}/' + os.environ['RANK'], 'w').write(str(os.getpid())); time.sleep(600)",
    )

    class Clock(subprocess.Popen):
        """Its 600 seconds are over as soon as both ranks are there."""

        def wait(self, timeout=None):
            if timeout != 600:
                return super().wait(timeout)
            while not all((tmp_path / str(rank)).exists() for rank in range(2)):
                time.sleep(0.05)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(subprocess, "Popen", Clock)
    start = time.time()
    with pytest.raises(LaunchError, match="ran for more than 600 seconds"):
        torchrun(program, ranks=2, quiet=True, timeout=600)
    assert time.time() - start < 60
    pids = [int((tmp_path / str(rank)).read_text()) for rank in range(2)]
    assert gone(pids, within=5) and os.getpid() not in pids


def test_free_port_is_free_and_local():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))
