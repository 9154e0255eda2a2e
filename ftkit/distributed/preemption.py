"""Stop on request: a preemptible machine sends a signal some seconds before it goes."""

import signal
import threading
from types import FrameType

from .mesh import DistributedContext

# SIGTERM: the cloud, Kubernetes and torchrun; SIGUSR1: what `sbatch --signal=USR1@60` sends. Windows lacks it.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class PreemptionHandler:
    """A context manager in which SIGTERM and SIGUSR1 only set a flag, to be read with `requested` after each step.

    torchrun passes a SIGTERM on to every rank and kills after 30 seconds what still runs, or after as many as its
    environment has in TORCH_ELASTIC_SHUTDOWN_TIMEOUT (from torch 2.12 on): a step and a checkpoint must fit into that.
    torchrun's own exit code is then not 0, even if every rank's is. Python delivers signals to the main thread only:
    in another thread the flag is never set.
    """

    def __init__(self):
        self.signalled = False
        self._previous = {}

    def __enter__(self) -> "PreemptionHandler":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._set) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True

    def requested(self, context: DistributedContext) -> bool:
        """Whether any rank was signalled. A collective: all ranks must call it at the same place."""
        return context.sum(float(self.signalled)) > 0
