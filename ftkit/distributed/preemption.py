"""Stop when asked: a preemptible machine says so with a signal, some seconds before it goes."""

import signal
import threading
from types import FrameType

from .mesh import DistributedContext

# SIGTERM: the cloud, Kubernetes and torchrun; SIGUSR1: what `sbatch --signal=USR1@60` sends. Windows lacks it.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class PreemptionHandler:
    """While it is open, SIGTERM and SIGUSR1 set a flag, to be asked for at the end of a step.

    torchrun passes a SIGTERM on to every rank and kills after 30 seconds what still lives: a step and a
    checkpoint must fit into that. torchrun itself then ends with an exit code that is not 0, although every
    rank ended with 0. Signals reach only the main thread: opened in another one, it never hears of any.
    """

    def __init__(self):
        self.signalled = False
        self._before = {}

    def __enter__(self) -> "PreemptionHandler":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._set) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True

    def asked(self, context: DistributedContext) -> bool:
        """Whether any rank was signalled; the same on all ranks, which must all ask at the same place."""
        return context.sum(float(self.signalled)) > 0
