"""Forks are ranks like others, and one that fails takes the others with it."""

import subprocess
import sys
import time

import pytest

from ftkit.distributed.launch import run_forked

PROGRAM = """
import sys, time
from ftkit.distributed.launch import run_forked

def main(context):
    if sys.argv[1:] == [str(context.rank)]:
        raise ValueError("no good")
    if sys.argv[1:]:
        time.sleep(600)
    sys.stdout.write(f"sum {context.sum(context.rank + 1.0)} {context.parallel_dims}\\n")  # in one piece

run_forked(main, RANKS)
print("all done", flush=True)
"""


def run(tmp_path, *arguments, ranks=3):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("RANKS", str(ranks)))
    return subprocess.run([sys.executable, program, *arguments], capture_output=True, text=True, timeout=300)


def test_forks_are_ranks(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sum 6.0 1,3,1") == 3 and done.stdout.endswith("all done\n")


def test_a_rank_that_fails_ends_the_others(tmp_path):
    start = time.monotonic()
    done = run(tmp_path, "1")
    assert done.returncode and time.monotonic() - start < 250
    assert "no good" in done.stderr and "rank 1 of 3 failed" in done.stderr and "all done" not in done.stdout


def test_one_rank_is_a_fork_too(tmp_path):
    done = run(tmp_path, ranks=1)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "sum 1.0 1,1,1\nall done\n"


def test_where_nothing_can_fork_it_says_what_to_do(monkeypatch):
    monkeypatch.delattr("os.fork")
    with pytest.raises(RuntimeError, match="start the program with torchrun"):
        run_forked(print, 2)
