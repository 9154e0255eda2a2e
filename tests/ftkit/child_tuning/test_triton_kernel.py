"""The CUDA kernel without a GPU: run in Triton's interpreter against the CPU path, and compiled for CUDA."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None,
        reason="Triton is not installed: pip install -c constraints.txt -e '.[kernels]' tests the CUDA kernel too",
    ),
]
HERE = Path(__file__).parent


def run(python: str, script: str, folder: Path, **environment) -> dict:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    command = [python, str(HERE / script), str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_interpreted_kernel_agrees_with_the_cpu_path_and_no_mutation_of_it_does(tmp_path):
    found = run(warm.COLD, "kernel_in_interpreter.py", tmp_path, TRITON_INTERPRET="1")  # read on import
    right = {name: error for name, error in found.items() if ": " not in name}
    mutated = {name: error for name, error in found.items() if ": " in name}
    assert len(right) == 5 and len(mutated) >= 10
    assert {name: error for name, error in right.items() if error is not None} == {}
    assert [name for name, error in mutated.items() if error is None] == []


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles for CUDA on Linux")
def test_the_kernel_compiles_for_cuda_as_it_was_meant(tmp_path):
    for found in run(sys.executable, "kernel_compiled.py", tmp_path).values():
        assert found["loads of 16 bytes"] and found["stores of 16 bytes"]
        assert found["roundings to nearest"] and found["correct square roots"] and found["correct divisions"]
        assert found["spills"] == 0 and found["fused products"] == 0
        assert found["64-bit high products"] < 40, "the generator is drawn more than once for 16 elements"
