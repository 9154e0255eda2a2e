"""Live ranks in a notebook: `ranks = start_ranks(2)`, then `%%px` cells that every rank runs.

The ranks are engines of ipyparallel on this machine, joined in one process group. What they print appears in the
order of the ranks; a cell that fails on one of them fails for all within a second or so, and says where.
"""

import signal
import sys
import time
import weakref
from contextlib import nullcontext

from ftcourse.expected import expected_error

from . import worker
from .cluster import Engines, refuse_where_it_cannot_work, start_engines
from .errors import AGAIN, RAISES, RankError, gone, is_one_mistake, named, not_started, refused_options, report
from .worker import Outcome

GRACE = 0.5  # seconds that the others have to end a cell by themselves after one has failed
IMPORTING = 30  # seconds that a rank may take to import torch before it can join
SOON = 2  # seconds that ranks which gave up together may be apart
REPEAT = 2  # seconds after which a rank is interrupted again: one that had not begun the cell missed it


def start_ranks(world_size: int = 2, timeout: float = 30.0) -> "LiveRanks":
    """Start `world_size` ranks on this machine and, inside a notebook, give it the cell magic `%%px`.

    Every rank knows `rank`, `world_size` and `mesh`. timeout: the seconds after which a rank gives up waiting for
    another one, when they join and in every collective. They use one thread each, and GPUs only where there is one
    for each rank. They end with `stop()`, with the `with` block, or with the notebook, however that ends.

    Raises ValueError for fewer than one rank, RankError where the platform cannot, or where a rank does not start or
    join in time.
    """
    if world_size < 1:
        raise ValueError(f"start at least 1 rank, not {world_size}")
    refuse_where_it_cannot_work()
    engines = start_engines(world_size)
    ranks = LiveRanks(engines, world_size, timeout)
    try:
        ranks.join()
        ranks.register_magic()
    except BaseException:
        ranks.stop()
        raise
    return ranks


class LiveRanks:
    """Ranks that run. `run` a cell on all, `get` an expression's value from each, `stop` them."""

    def __init__(self, engines: Engines, world_size: int, timeout: float):
        self.world_size, self.timeout = world_size, timeout
        self._client, self._folder, self._meetings = engines.client, engines.folder, 0
        self._end = weakref.finalize(self, engines.end)  # runs at exit, too

    def run(self, code: str) -> list[str]:
        """Run `code` on every rank; returns what each printed. Raises RankError when one fails."""
        return [outcome.text for outcome in self._outcomes(code)]

    def get(self, expression: str) -> list:
        """The value of `expression` on each rank, copied into this process."""
        self.run(f"_value = {expression}")
        asked = [self._submit(rank, worker.fetch, "_value") for rank in range(self.world_size)]
        return [self._answer(rank, result) for rank, result in enumerate(asked)]

    def join(self) -> None:
        """Form a new process group and mesh. Raises RankError naming the ranks that did not come in time."""
        self._meetings += 1
        meeting = f"{self._folder}/meeting-{self._meetings}"
        asked = [
            self._submit(rank, worker.join, rank, self.world_size, meeting, self.timeout)
            for rank in range(self.world_size)
        ]
        # Who waits for another gives up after `timeout`; who has not answered soon after that never came.
        deadline = time.monotonic() + self.timeout + IMPORTING
        while not all(result.done() for result in asked) and time.monotonic() < deadline:
            self._client.wait(asked, timeout=0.1)
            if any(result.done() and not result.successful() for result in asked):
                deadline = min(deadline, time.monotonic() + SOON)
        absent = [rank for rank, result in enumerate(asked) if not result.done()]
        if absent:
            raise RankError(
                f"{named(absent)} did not join within {self.timeout:g} s: the process is stopped, or too slow. {AGAIN}"
            )
        for rank, result in enumerate(asked):
            self._answer(rank, result)

    def register_magic(self) -> None:
        """In IPython, let `%%px` run its cell on these ranks, on all of them: options such as --targets are refused.

        `%%px --raises` is for an error on purpose: it is shown, and does not end "Run All"."""
        if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()):

            def px(line: str, cell: str) -> None:
                options = line.split()
                if options not in ([], [RAISES]):
                    raise RankError(refused_options(line.strip()))
                with expected_error(RankError) if options else nullcontext():
                    print(self.show("\n" + cell), end="")  # lines are counted from that of the magic

            shell.register_magic_function(px, magic_kind="cell")

    def show(self, code: str) -> str:
        """Run `code`; all that was printed, in the order of the ranks, each line with its rank before it."""
        texts = enumerate(self.run(code))
        return "".join(f"[rank {rank}] {line}\n" for rank, text in texts for line in text.splitlines())

    def stop(self) -> None:
        """End the ranks, and all that they hold. A second call does nothing."""
        self._end()

    def __enter__(self) -> "LiveRanks":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = f"{self.world_size} running" if self._end.alive else "stopped"
        return f"LiveRanks({state})"

    def _submit(self, rank: int, function, *arguments):
        """Ask one rank for `function(*arguments)`; returns ipyparallel's AsyncResult."""
        if not self._end.alive:
            raise RankError(f"the ranks were stopped. {AGAIN}")
        if rank not in self._client.ids:
            raise RankError(gone(rank))
        return self._client[rank].apply_async(function, *arguments)

    def _answer(self, rank: int, result):
        """The value of a finished AsyncResult. Raises RankError where the rank died or refused."""
        try:
            return result.get()
        except Exception as error:  # ipyparallel's RemoteError, or its EngineError from the hub
            if getattr(error, "ename", "") == "EngineError":
                raise RankError(gone(rank)) from None
            raise RankError(f"rank {rank}: {getattr(error, 'ename', '')}: {getattr(error, 'evalue', error)}") from None

    def _outcomes(self, code: str) -> list[Outcome]:
        running = [self._submit(rank, worker.run_cell, code) for rank in range(self.world_size)]
        self._wait(running)
        outcomes = [self._answer(rank, result) for rank, result in enumerate(running)]
        failures = {rank: outcome.failure for rank, outcome in enumerate(outcomes) if outcome.failure}
        if failures:
            if not is_one_mistake(failures, self.world_size):
                self.join()  # the ranks are no longer at the same point of the same cell
            raise RankError(report(failures, self.world_size))
        return outcomes

    def _wait(self, running: list) -> None:
        """Wait for the end of a cell. Once a rank has failed, the others are not left waiting for it."""
        failed_at, interrupted_at = None, None
        while not all(result.done() for result in running):
            try:
                self._client.wait(running, timeout=0.05)
                if interrupted_at and time.monotonic() - interrupted_at > REPEAT:
                    self._interrupt(running)
                    interrupted_at = time.monotonic()
                done = {rank: result for rank, result in enumerate(running) if result.done()}
                failed = [rank for rank, result in done.items() if self._answer(rank, result).failure]
                if not failed:
                    continue
                failed_at = failed_at or time.monotonic()
                if len(done) < len(running) and time.monotonic() - failed_at > GRACE:
                    for rank in failed:
                        self._submit(rank, worker.hang_up).get()
                    # Who fails now may have others waiting for it in turn, and is then next to hang up.
                    self._client.wait(running, timeout=GRACE)
            except KeyboardInterrupt:
                if interrupted_at:
                    raise
                self._interrupt(running)
                interrupted_at = time.monotonic()

    def _interrupt(self, running: list) -> None:
        """Send SIGINT to the ranks that are still at work."""
        busy = [rank for rank, result in enumerate(running) if not result.done()]
        self._client.send_signal(signal.SIGINT, targets=busy, block=True)


def _offer_magic() -> None:
    """In IPython, let `%%px` say what is missing until ranks have been started."""
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()):

        def px(line: str, cell: str) -> None:
            raise RankError(not_started())

        if shell.find_cell_magic("px") is None:
            shell.register_magic_function(px, magic_kind="cell")


_offer_magic()
