"""Programs whose ranks are forks: run one, and show what it said if it fails."""

import subprocess
import sys
from pathlib import Path


def run_program(program: Path, *arguments: object) -> None:
    """`python program arguments…`, to its end."""
    command = [sys.executable, program, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500)
    assert done.returncode == 0, done.stdout
