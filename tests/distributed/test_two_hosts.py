"""Two machines made of network namespaces: a rank is lost, then a whole machine; the run ends as if undisturbed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from host_ranks import HOST_LOST, KILLED

from ftkit.distributed.launch import torchrun

HERE = Path(__file__).parent


def test_a_run_on_two_hosts_survives_both_losses(tmp_path):
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            pytest.skip(f"two hosts need the program `{tool}`, which is not installed here")
    folder, reference = tmp_path / "hosts", tmp_path / "reference"
    folder.mkdir(), reference.mkdir()
    world = [
        "unshare",
        "--user",
        "--map-root-user",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
    ]
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    command = [*world, "env", *(f"{k}={v}" for k, v in environment.items()), sys.executable]
    done = subprocess.run(
        [*command, str(HERE / "two_hosts.py"), str(folder)], capture_output=True, text=True, timeout=280
    )
    if not (folder / "cable").exists():
        pytest.skip(f"network namespaces are not permitted here: {done.stderr.strip()[-200:]}")
    logs = "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("host-*.log")))
    assert done.returncode == 0, done.stderr + logs
    starts = [int(line) for line in (folder / "attempts").read_text().split()]
    # A checkpoint after each step: what is done again is the step of the loss, and at most one whose checkpoint
    # was being written.
    assert starts[0] == 0 and len(starts) == 3
    assert KILLED - 1 <= starts[1] <= KILLED and HOST_LOST - 1 <= starts[2] <= HOST_LOST

    torchrun(HERE / "host_ranks.py", reference, ranks=4, quiet=True, timeout=200)
    assert json.loads((folder / "weights.json").read_text()) == json.loads(
        (reference / "weights.json").read_text()
    )
