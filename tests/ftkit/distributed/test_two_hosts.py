"""Two machines made of network namespaces: a rank is lost, then a whole machine; the run ends as if undisturbed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ftcourse.runs import torchrun
from tests import warm

from .host_ranks import HOST_LOST, KILLED

pytestmark = pytest.mark.thorough

HERE = Path(__file__).parent


def test_a_run_on_two_hosts_survives_both_losses(tmp_path):
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            pytest.skip(f"two hosts need the program `{tool}`, which is not installed here")
    folder, reference = tmp_path / "hosts", tmp_path / "reference"
    folder.mkdir(), reference.mkdir()
    torchrun(HERE / "host_ranks.py", reference, ranks=4, quiet=True, timeout=200)
    # Itself cold: it kills every process of a host, and with a launcher of its own it would end itself.
    command = ["unshare", "--user", "--map-root-user", "--net"]
    command += [warm.COLD, HERE / "two_hosts.py", folder, sys.executable]
    environment = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    if not (folder / "cable").exists():
        pytest.skip(f"network namespaces are not permitted here: {done.stderr.strip()[-200:]}")
    logs = "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("host-*.log")))
    assert done.returncode == 0, done.stderr + logs
    starts = [int(line) for line in (folder / "attempts").read_text().split()]
    # A checkpoint after each step: what is done again is the step of the loss, and at most one whose checkpoint
    # was being written.
    assert starts[0] == 0 and len(starts) == 3
    assert KILLED - 1 <= starts[1] <= KILLED and HOST_LOST - 1 <= starts[2] <= HOST_LOST
    assert json.loads((folder / "weights.json").read_text()) == json.loads((reference / "weights.json").read_text())
