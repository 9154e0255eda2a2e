"""The processes of live ranks: engines of ipyparallel on this machine, in a folder of their own, with a guard."""

import logging
import subprocess
import sys
import tempfile
from dataclasses import dataclass

import psutil

from ftcourse._extras import require

from .errors import RankError
from .guard import end_guard, start_guard

CONTROLLER = [
    "--IPController.use_threads=True",  # one process in place of nine
    "--HeartMonitor.period=300",  # ms; an engine is registered at its second heartbeat, and we wait for that
    "--HeartMonitor.max_heartmonitor_misses=200",  # a busy machine is not a death; a death is noticed without
]
FOLDER = "IPP_PROFILE_DIR"  # by this name ipyparallel gives each of its processes the folder in its environment
STARTING = 120  # seconds that the processes may take before they can join


@dataclass(frozen=True)
class Engines:
    client: object  # ipyparallel's; its engine r is rank r
    guard: subprocess.Popen  # ends the engines when its stdin closes
    folder: str  # where they write

    def end(self) -> None:
        self.client.close()
        end_guard(self.guard)


def refuse_where_it_cannot_work() -> None:
    if sys.platform in ("emscripten", "wasi"):
        raise RankError("this kernel cannot start processes: open the notebook in JupyterLab or Colab instead")
    require("ipyparallel")
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_gloo_available():
        raise RankError("this build of torch has no gloo, which carries what ranks send: use Linux, macOS or WSL 2")


def start_engines(world_size: int) -> Engines:
    """Start ipyparallel's controller and engines. Raises RankError where they do not start in time."""
    # What is written lies here, not in the learner's ~/.ipython.
    folder = tempfile.mkdtemp(prefix="ftkit-ranks-")
    guard = start_guard(FOLDER, folder, "--remove")
    try:
        return Engines(_start_cluster(world_size, folder), guard, folder)
    except BaseException as error:
        end_guard(guard)
        if isinstance(error, TimeoutError):
            raise RankError(
                f"the ranks' processes did not start within {STARTING} s: too little memory, or a busy machine? "
                "Start fewer, or try again"
            ) from None
        raise


def _start_cluster(world_size: int, folder: str):
    """Returns the client, once all engines have registered. Raises TimeoutError."""
    import ipyparallel
    import torch
    from traitlets.config import Config

    own = {"OMP_NUM_THREADS": "1", "IPYTHONDIR": folder, "GLOO_SOCKET_IFNAME": _loopback()}
    if torch.cuda.device_count() < world_size:
        own["CUDA_VISIBLE_DEVICES"] = ""  # a rank without a GPU of its own cannot join those that have one
    config = Config()
    config.LocalControllerLauncher.environment = own
    config.LocalEngineLauncher.environment = config.LocalEngineSetLauncher.environment = own
    cluster = ipyparallel.Cluster(
        n=world_size,
        config=config,
        profile_dir=folder,
        cluster_file="",
        controller_ip="127.0.0.1",
        controller_args=CONTROLLER,
        delay=0,
        load_profile=False,
        shutdown_atexit=False,  # the guard does it, and prints nothing
        log=logging.getLogger(f"{__name__}.silent"),
    )
    cluster.log.setLevel(logging.CRITICAL + 1)
    cluster.start_cluster_sync()
    client = cluster.connect_client_sync()
    client.wait_for_engines(world_size, timeout=STARTING, interactive=False)  # interactive: a progress bar
    return client


def _loopback() -> str:
    """The name of the network interface that stays on this machine, such as lo; gloo asks for it by name."""
    addresses = psutil.net_if_addrs().items()
    return next(name for name, own in addresses if any(a.address == "127.0.0.1" for a in own))
