"""Run the programs of a lesson as forks of one process, which imports everything while the learner reads.

`Starter("ftkit.distributed.launch").run("program.py")`: the program calls `run_forked`, and so its ranks are forks too.
"""

import gc
import importlib
import os
import runpy
import subprocess
import sys
import uuid

from ftcourse.live_ranks.guard import end_guard

from .runs import start_guarded

DONE, FAILED = "program done\n", "program failed\n"  # what the process says when a program has ended


class Starter:
    """Imports the modules in a process of its own, which ends with `stop()` or with this process, however that ends."""

    def __init__(self, *modules: str):
        self._modules = modules
        self._begin()

    def run(self, program: str) -> None:
        """Wait until the program, a file in this folder, has ended. Raises RuntimeError with what it said if it fails.

        An interrupt ends the program. The next call starts the process anew, and then takes its imports' seconds.
        """
        if self._process.poll() is not None:
            self._begin()
        said = []
        try:
            print(program, file=self._process.stdin, flush=True)
            for line in self._process.stdout:
                if line in (DONE, FAILED):
                    break
                said.append(line)
        except BaseException:  # else the next program would read the rest of what this one says
            self.stop()
            raise
        if not said or line != DONE:
            raise RuntimeError(f"{program} failed:\n{''.join(said)}")

    def stop(self) -> None:
        """End the process and what it runs. A second call does nothing."""
        end_guard(self._guard)
        self._process.wait()

    def _begin(self) -> None:
        command = [sys.executable, "-m", "ftcourse.starter", *self._modules]
        self._process, self._guard = start_guarded(
            command,
            uuid.uuid4().hex,
            dict(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def serve(modules: list[str]) -> None:
    """Import the modules, then run each program that is named on standard input, in a fork."""
    for name in modules:
        importlib.import_module(name)
    gc.freeze()  # the ranks' garbage collectors need not search what is here already
    for program in sys.stdin:
        if not (process := os.fork()):
            runpy.run_path(program.strip())
            os._exit(0)
        status = os.waitpid(process, 0)[1]
        print(f"\n{FAILED if status else DONE}", end="", flush=True)


if __name__ == "__main__":
    serve(sys.argv[1:])
