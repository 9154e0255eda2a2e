"""What makes two runs of a notebook agree: one environment for its kernel, one token for whatever must vary.

The build (build.py) and the tests (conftest.py) both run notebooks with `kernel_environment` and both put the
tokens of `replacements` into what comes out, so that nothing is stable in the one and different in the other.
"""

import atexit
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

from ftcourse.svg import picture_html

ROOT = Path(__file__).resolve().parent.parent
SANITIZE = ROOT / "tests" / "sanitize.cfg"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
KEPT = ("tags", "jupyter")  # of a cell's metadata; "jupyter" says whether its source is folded
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
# Settings of the user or of a caller that would show in an output. ipykernel reads pytest's marks, for one.
DROPPED = (
    "FTKIT_",
    "PYTEST_",
    "IPYTHON",
    "PROCESSOR",
    "PYTHONWARN",
    "MPLBACKEND",
    "TQDM_",
    "NO_COLOR",
    "FORCE_COLOR",
    "CLICOLOR",
)
# Other processors, simulated: environment variables by which torch, oneDNN, MKL, OpenBLAS and numpy choose their
# kernels. What a notebook prints must be the same under each (`make portable`).
PROCESSORS = {
    "native": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_CBWR": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    },
    "sse4": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    },
    "two-threads": {
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",  # else threads that wait take the cores from those that work
    },
}
FIXED = {
    "OMP_NUM_THREADS": "1",  # with more, sums are taken in another order and end in other digits
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # else torch.compile starts a pool of processes that import torch
    # What /proc/cpuinfo lists works: else torch.compile builds a program for each set of instructions, 9 CPU seconds.
    "TORCHINDUCTOR_VEC_ISA_OK": "1",
    "CUDA_VISIBLE_DEVICES": "",  # the stored outputs are the processor's
    "FTKIT_PROGRESS": "off",  # a build or a test solves exercises, and is no learner
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    "MATPLOTLIBRC": os.devnull,
    "COLUMNS": "100",
    "LINES": "40",
}


def fixed():
    """FIXED, and the variables of the processor that the environment variable PROCESSOR names (default: native)."""
    name = os.environ.get("PROCESSOR") or "native"
    if name not in PROCESSORS:
        raise ValueError(f"PROCESSOR is {name!r}: give one of {', '.join(PROCESSORS)}")
    # A cache of its own: torch 2.13 does not ask which processor a cached kernel was compiled for, and one with the
    # widths of AVX-512 gives NaN gradients where the rest computes as AVX2.
    return FIXED | PROCESSORS[name] | {"TORCHINDUCTOR_CACHE_DIR": str(ROOT / ".torchinductor" / name)}


@functools.cache
def kernel_environment():
    """The environment variables of every kernel that builds or tests a notebook, as a dict.

    `make lab` gives a learner a virtual environment that is not activated, so the PATH here leaves it out as
    well: a notebook that calls `torchrun` by name, not by `sys.executable`, fails here as it would there.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
    if sys.prefix != sys.base_prefix:
        own = str(Path(sys.prefix) / "bin")
        env["PATH"] = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if p != own)
    settings = tempfile.mkdtemp(prefix="ipython-")
    atexit.register(shutil.rmtree, settings, ignore_errors=True)
    return env | fixed() | {"IPYTHONDIR": settings}


def warm_up():
    """Let matplotlib find its fonts before a notebook does: on a new machine it says in the notebook that it does."""
    command = [sys.executable, "-c", "import matplotlib.font_manager"]
    subprocess.run(command, env=kernel_environment(), capture_output=True, check=False)


@functools.cache
def replacements():
    """(regex, replacement) pairs: the paths of this checkout first, then the table in tests/sanitize.cfg."""
    root, home = str(ROOT), str(Path.home())
    spellings = [root, root.replace(home, "~", 1)] if root.startswith(home + os.sep) else [root]
    own = []
    for path in spellings:
        whole = r"(?:(?<![\w.~-])|(?<=\x1b\[\d\dm))" + re.escape(path)  # a colour code ends in "m"
        own += [(whole + "/", ""), (whole + r"(?![\w.-])", "REPOSITORY")]
    return own + re.findall(r"^regex: (.*)\nreplace: (.*)$", SANITIZE.read_text(encoding="utf-8"), re.M)


def normalise_text(text):
    """`text` with a token for whatever may differ between two honest runs; a second pass changes nothing."""
    for regex, replacement in replacements():
        text = re.sub(regex, replacement, text)
    return text


def merge_streams(outputs):
    """Join neighbouring streams, stdout before stderr: how a kernel cuts and mixes them is mere timing.

    A line that was rewritten in place (`\\r`, a progress bar) is kept as it was last seen, without the spaces that
    cover what was longer.
    """
    merged, run = [], {}
    for out in [*outputs, None]:
        if out is not None and out.output_type == "stream":
            if out.name in run:
                run[out.name].text += out.text
            else:
                run[out.name] = nbformat.from_dict(out)
            continue
        for name in sorted(run, reverse=True):
            run[name].text = re.sub(r"^.*\r([^\n]+?) *$", r"\1", run[name].text, flags=re.M)
            merged.append(run[name])
        run = {}
        if out is not None:
            merged.append(out)
    return merged


def show_still(data):
    """Let the bundle of a control hold images with alternative text instead of inline SVG: what JupyterLab shows where
    the control itself cannot live, in a notebook that is not trusted, too."""
    if WIDGET_VIEW in data and (shown := data.get("text/html") or data.get("image/svg+xml")):
        data["text/html"] = re.sub(r"<svg\b.*?</svg>", lambda found: picture_html(found[0]), shown, flags=re.S)


def normalise(nb):
    """Rewrite an executed notebook in place so that a second run gives the same bytes; returns it."""
    nb.metadata = nbformat.from_dict(METADATA)
    for count, cell in enumerate((c for c in nb.cells if c.cell_type == "code"), start=1):
        cell.execution_count = count
        cell.metadata = nbformat.from_dict({key: value for key, value in cell.metadata.items() if key in KEPT})
        cell.outputs = merge_streams(cell.outputs)
        for out in cell.outputs:
            if out.output_type == "execute_result":
                out.execution_count = count
            data = out.get("data", {})
            show_still(data)
            data.pop(WIDGET_VIEW, None)  # it names a live model by a random id
            # A picture shows nothing of this run or machine, and a learner should not read tokens in it.
            for holder in (out,) if "<img alt=" in data.get("text/html", "") else (out, data):
                for key, value in holder.items():
                    # Base64 is left alone: by chance it can hold anything, an address too.
                    if isinstance(value, str) and key not in (
                        "output_type",
                        "name",
                        "image/png",
                        "image/jpeg",
                    ):
                        holder[key] = normalise_text(value)
            if out.output_type == "error":
                out.traceback = normalise_text("\n".join(out.traceback)).split("\n")
    return nb
