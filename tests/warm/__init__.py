"""A Python that starts warm: programs and kernels are forked from a process that has imported torch already.

Importing torch, transformers and PEFT takes 5 to 8 CPU seconds, and the tests start some two hundred programs, ranks
and kernels. `install` replaces `sys.executable`, for the tests and whatever they start, by `launcher.py`, which asks
`server.py` for a fork. A fork is like a new interpreter (arguments, environment, folder, open files, signals, exit
code), with two differences: modules are loaded already, and it is not the launcher's child process. Tests that are
about either of them run `COLD`, the real interpreter. So does every program whose environment has other settings that
are read on import, every one in another namespace than of users or network (which a fork enters), and everything on
another system than Linux.
"""

import atexit
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
COLD = os.environ.get("FTKIT_COLD_PYTHON") or sys.executable  # the interpreter itself
# Names of environment variables that modules read when they are imported, and the C library at its start, begin so.
READ_ON_IMPORT = (
    "PYTHON|OMP_|MKL_|OPENBLAS_|ATEN_|ONEDNN_|DNNL_|NPY_|TORCH_|PYTORCH_|TRITON_|"
    "HF_|TRANSFORMERS_|TOKENIZERS_|TQDM_|MPL|LD_|LC_|LANG|MALLOC_"
)
# But the fork sees to the first itself, ipykernel to the second, torchrun sets the third, which NCCL reads, and
# torchrun reads the fourth when it meets the other hosts.
HARMLESS = (
    *("PYTHONUNBUFFERED", "MPLBACKEND", "TORCH_NCCL_ASYNC_ERROR_HANDLING"),
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE",
)


def read_on_import(environment: dict[str, str]) -> dict[str, str]:
    """The part of an environment that a process has to be started with."""
    return {k: v for k, v in environment.items() if re.match(READ_ON_IMPORT, k) and k not in HARMLESS}


def install() -> None:
    """Let `sys.executable` start warm in this process and in those that it starts, until this process ends."""
    if sys.platform != "linux":  # the launcher reads /proc
        return
    if "FTKIT_WARM" not in os.environ:
        folder = Path(tempfile.mkdtemp(prefix="warm-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # a server whose folder is gone ends
        (folder / "python").write_text(f"#!{COLD} -IS\n{(HERE / 'launcher.py').read_text()}")
        (folder / "python").chmod(0o755)
        settings = {
            "environment": read_on_import(dict(os.environ)),
            "read_on_import": READ_ON_IMPORT,
            "python": COLD,
        }
        settings |= {"harmless": HARMLESS, "server": str(HERE / "server.py"), "owner": os.getpid()}
        settings |= {"namespaces": {path.name: os.readlink(path) for path in Path("/proc/self/ns").iterdir()}}
        (folder / "settings.json").write_text(json.dumps(settings))
        os.environ["FTKIT_WARM"], os.environ["FTKIT_COLD_PYTHON"] = str(folder), COLD
    sys.executable = os.environ["FTKIT_WARM"] + "/python"
