"""Programs whose ranks are forks: run one, and show what it said if it fails."""

import subprocess
import sys
from pathlib import Path

from tests import ROOT


def run_program(program: Path, *arguments: object) -> None:
    """Run a module of the tests to its end, from the checkout's folder, so that it can import their helpers."""
    module = ".".join(program.relative_to(ROOT).with_suffix("").parts)
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500, cwd=ROOT)
    assert done.returncode == 0, done.stdout
