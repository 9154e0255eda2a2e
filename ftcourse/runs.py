"""Start programs of several processes from a notebook, show their output, and end them with the notebook.

`torchrun` waits for the program; `start` returns a `Run` at once, whose `result` waits. Programs get a process group of
their own, because JupyterLab sends an interrupt to the kernel's whole group; a guard ends them with the kernel.
"""

import codecs
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from pathlib import Path

from ftcourse.live_ranks.guard import end_guard, end_marked, start_guard
from ftkit.distributed.launch import free_port

MARK = "FTKIT_RUN"  # in the environment of a run's processes: its folder, or a name that no other run has
# torchrun's own report of a failure begins so; what the ranks said stands before it.
AGENT_LINE = re.compile(r"^[WEI]\d{4} |^Traceback \(most recent call last\):\n.*elastic", re.MULTILINE)
SHOWN_LINES = 15
LOOK_EVERY = 0.1  # seconds between two looks at what a run has printed


class LaunchError(RuntimeError):
    """A rank failed; the message ends with the last lines that the ranks printed."""


class Run:
    """A program that runs; made by `start`. `result` waits for it, `stop` ends it."""

    def __init__(self, command: list[str], name: str, mark: str, timeout: float, remedy: str):
        self.name, self._timeout, self._remedy = name, timeout, remedy
        self._expired, self._ended = False, threading.Event()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe would have to be read all the time
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONUNBUFFERED": "1"}
        self._process, self._guard = start_guarded(
            command, mark, environment, stdin=subprocess.DEVNULL, stdout=self._said, stderr=subprocess.STDOUT
        )
        threading.Thread(target=self._wait, daemon=True).start()

    def result(self, show: bool = False) -> str:
        """Wait for the end and return all that was printed; with `show`, print it as it comes.

        An interrupt ends the waiting and leaves the run alone: call it again. Raises LaunchError when the run failed,
        was killed or ran out of time, with the last lines that it printed and the cell that starts it again.
        """
        shown, decode = 0, codecs.getincrementaldecoder("utf-8")("replace").decode
        while show and not self._ended.wait(LOOK_EVERY):
            shown += self._show(shown, decode)
        self._ended.wait()
        if show:
            self._show(shown, decode)
        said = os.pread(self._said.fileno(), os.fstat(self._said.fileno()).st_size, 0).decode("utf-8", "replace")
        if code := self._process.returncode:
            raise LaunchError(self._failure(said, code))
        return said

    def stop(self) -> None:
        """End its processes, and wait until they have ended. A second call does nothing."""
        self._process.kill()
        self._ended.wait()

    def __repr__(self) -> str:
        return f"Run({self.name}: {'ended' if self._ended.is_set() else 'running'})"

    def _wait(self) -> None:
        try:
            self._process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            self._expired = True
            self._process.kill()
            self._process.wait()
        end_guard(self._guard)  # ranks have sessions of their own and may outlive torchrun
        self._ended.set()

    def _show(self, start: int, decode) -> int:
        """Print what came after the first `start` bytes; returns how many bytes that was."""
        new = os.pread(self._said.fileno(), 2**20, start)
        sys.stdout.write(decode(new))
        sys.stdout.flush()
        return len(new)

    def _failure(self, said: str, code: int) -> str:
        lines = AGENT_LINE.split(said)[0].strip().split("\n")
        spoken = [line.rstrip("\r").rpartition("\r")[2] for line in lines if line.strip()][-SHOWN_LINES:]
        why = "failed" if code > 0 else f"was ended by {signal.Signals(-code).name}"
        why = f"ran for more than {self._timeout:g} seconds" if self._expired else why
        return "\n".join([f"{self.name} {why}:", *spoken, *([self._remedy] if self._remedy else [])])


def torchrun(
    *arguments: str, ranks: int = 2, timeout: float = 600.0, quiet: bool = False, max_restarts: int = 0
) -> str:
    """Run `torchrun --nproc-per-node ranks arguments…` on this machine and return all that it printed.

    Output appears while it runs, unless `quiet`. The processes end with the call: on success, on failure, on
    an interrupt of the cell, and after `timeout` seconds. When a rank dies, all are started again, `max_restarts`
    times at most.
    Raises LaunchError when a rank fails or time runs out.
    """
    run = Run(*_command(arguments, ranks, max_restarts), uuid.uuid4().hex, timeout, remedy="")
    try:
        return run.result(show=not quiet)
    finally:
        run.stop()


def start(
    *arguments: str,
    ranks: int | None = 2,
    folder: str | Path | None = None,
    timeout: float = 600.0,
    max_restarts: int = 0,
) -> Run:
    """Start the same and return at once; with `ranks=None`, `python arguments…` without torchrun.

    It goes on while other cells run or are interrupted, for `timeout` seconds at most, and ends with this process.
    `folder`: where it writes. What an earlier run left there is removed, and one that still writes there is ended
    first: so a cell that starts a run may simply be run again.
    """
    mark = uuid.uuid4().hex
    if folder is not None:
        mark = str(Path(folder).absolute())
        end_marked(MARK, mark)
        shutil.rmtree(folder, ignore_errors=True)
    return Run(*_command(arguments, ranks, max_restarts), mark, timeout, _remedy())


def start_guarded(
    command: list[str], mark: str, environment: dict[str, str], **options
) -> tuple[subprocess.Popen, subprocess.Popen]:
    """A process in a session of its own, and the guard that ends it and its children when this process ends.

    `end_guard` ends them before. `options` are Popen's.
    """
    guard = start_guard(MARK, mark)
    try:
        environment = {**environment, MARK: mark}
        return subprocess.Popen(command, env=environment, start_new_session=True, **options), guard
    except BaseException:
        end_guard(guard)
        raise


def _command(arguments: tuple, ranks: int | None, max_restarts: int) -> tuple[list[str], str]:
    """The command, and its name in errors."""
    words = list(map(str, arguments))
    if ranks is None:
        return [sys.executable, *words], " ".join(words[:3])
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
    command += ["--master-addr=127.0.0.1", f"--master-port={free_port()}", f"--max-restarts={max_restarts}"]
    return [*command, *words], f"{' '.join(words[:3])} on {ranks} rank(s)"


def _remedy() -> str:
    """What to do about a run that is lost, with the number of the cell that starts it, where this is a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    cell = f"run the cell that started it, [{shell.execution_count}]," if shell else "start it"
    return f"This run is lost: {cell} again, then go on here."
