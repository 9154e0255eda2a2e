"""Start ranks from a notebook: torchrun as a child process, its output live, and nothing left behind."""

import codecs
import contextlib
import os
import re
import socket
import subprocess
import sys
import threading

import psutil

# torchrun's own report of a failure begins so; what the ranks said stands before it.
AGENT_LINE = re.compile(r"^[WEI]\d{4} |^Traceback \(most recent call last\):\n.*elastic", re.MULTILINE)
SHOWN_LINES = 15


class LaunchError(RuntimeError):
    """A rank failed; the message ends with the last lines that the ranks printed."""


def torchrun(
    *arguments: str, ranks: int = 2, timeout: float = 600.0, quiet: bool = False, max_restarts: int = 0
) -> str:
    """Run `torchrun --nproc-per-node ranks arguments…` on this machine and return all that it printed.

    Output appears while it runs, unless `quiet`. The processes end with the call: on success, on failure, on
    an interrupt of the cell, and after `timeout` seconds. When a rank dies, all are started again, `max_restarts`
    times at most.
    Raises LaunchError when a rank fails or time runs out.
    """
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
    command += ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    command += [f"--max-restarts={max_restarts}", *map(str, arguments)]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    clock = threading.Timer(timeout, _end, [process])
    clock.start()
    said, decode = "", codecs.getincrementaldecoder("utf-8")("replace").decode
    try:
        while chunk := process.stdout.read1():
            said += (text := decode(chunk))
            if not quiet:
                sys.stdout.write(text)
                sys.stdout.flush()
        code = process.wait()
    finally:
        expired = not clock.is_alive()
        clock.cancel()
        _end(process)
    if code:
        lines = AGENT_LINE.split(said)[0].strip().split("\n")
        spoken = [line.rstrip("\r").rpartition("\r")[2] for line in lines if line.strip()][-SHOWN_LINES:]
        why = f"ran for more than {timeout:g} seconds" if expired else "failed"
        raise LaunchError(
            "\n".join([f"{' '.join(map(str, arguments[:3]))} on {ranks} rank(s) {why}:", *spoken])
        )
    return said


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end(process: subprocess.Popen) -> None:
    """End torchrun and every process under it; ranks have process groups of their own."""
    try:
        family = [process, *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
