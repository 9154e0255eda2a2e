"""What each notebook takes at its peak, for machines with little memory, such as Binder's: every process it starts.

    python -m experiments.notebook_memory                      all notebooks, one after the other, into the record
    python -m experiments.notebook_memory 01_gradient_masks    these only; the others stay as they are stored

Each runs in a fresh kernel, as a learner would run it. Pages that several of its processes share are counted once: the
sum is that of what each process has for itself (its unique set size) and the largest shared part of one of them, taken
every tenth of a second. Not the proportional set size, which is smaller where other kernels run on the machine.
JupyterLab, which runs beside the kernel, is measured once.
"""

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient

from ftkit._arguments import parse
from ftkit.models import data_dir

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
RECORD = data_dir() / "results" / "notebook_memory.json"
INTERVAL = 0.1  # seconds between two samples
WAIT = 60.0  # seconds for JupyterLab to answer
CELL_TIMEOUT = 1800  # seconds
MIB = 2**20


def tree_bytes(root: psutil.Process) -> int:
    """Bytes of a process and all that descend from it, shared pages once; one that ends meanwhile counts nothing."""
    own = shared = 0
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.Error):
            found = process.memory_full_info()
            own, shared = own + found.uss, max(shared, found.rss - found.uss)
    return own + shared


@contextmanager
def peak_of(processes):
    """Yield a list that holds, once the block ends, the largest sum seen of the trees that `processes()` returns."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(INTERVAL):
            with suppress(psutil.Error):
                peak[0] = max(peak[0], sum(map(tree_bytes, processes())))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def measure_notebook(path: Path) -> dict:
    """Peak bytes of one notebook, run from its first cell to its last in a kernel of its own.

    Raises nbclient's CellExecutionError where a cell fails that is not meant to.
    """
    before = {child.pid for child in psutil.Process().children()}
    with peak_of(lambda: [child for child in psutil.Process().children() if child.pid not in before]) as peak:
        client = NotebookClient(
            nbformat.read(path, 4),
            timeout=CELL_TIMEOUT,
            kernel_name="python3",
            resources={"metadata": {"path": path.parent}},
        )
        client.execute()
    return {"peak": peak[0]}


def measure_lab() -> int:
    """Bytes of JupyterLab's server once its page and its list of kernels have been asked for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ServerApp.ip=127.0.0.1"]
    command += [f"--ServerApp.port={port}", "--IdentityProvider.token=measured", "--allow-root"]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + WAIT
            while True:
                with suppress(OSError):
                    for page in ("lab", "api/kernelspecs"):
                        urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}?token=measured", timeout=5).read()
                    return tree_bytes(psutil.Process(server.pid))
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("JupyterLab did not answer: run `jupyter lab` to see why")
                time.sleep(0.2)
        finally:
            server.terminate()
            server.wait()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="experiments.notebook_memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    parser.add_argument("names", nargs="*", help="of notebooks (default: all)")
    given = parse(parser, arguments)
    if unknown := set(given.names) - set(names):
        parser.error(f"no notebook {', '.join(sorted(unknown))}: there are {', '.join(names)}")
    stored = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() and given.names else {"notebooks": {}}
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # the threads as when the stored outputs were made
    if "lab" not in stored:
        stored["lab"] = measure_lab()
    stored["machine"] = f"{psutil.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    stored["date"] = date.today().isoformat()
    for name in given.names or names:
        stored["notebooks"][name] = measure_notebook(NOTEBOOKS / f"{name}.ipynb")
        print(f"{name}: {stored['notebooks'][name]['peak'] / MIB:,.0f} MiB", flush=True)
        RECORD.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
