"""Each launch file, run with the variables its engine sets and a torchrun that only notes its arguments."""

import json
import os
import shlex
import subprocess
import sys

import pytest
import yaml
from torch.distributed.run import parse_args
from transformers import HfArgumentParser

from ftkit.finetune.config import Config
from tests import ROOT

DEPLOY = ROOT / "deploy"
FLAGS = ["--model", "m", "--output", "/shared/runs/a", "--save_every", "50"]


@pytest.fixture
def engine(tmp_path):
    """A folder for PATH: torchrun notes arguments and environment, srun runs its command, scontrol names hosts."""
    note = tmp_path / "note.json"
    program = f"import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open({str(note)!r}, 'w'))"
    tools = {
        "torchrun": f'exec {shlex.quote(sys.executable)} -c {shlex.quote(program)} "$@"',
        "srun": 'exec "$@"',
        "scontrol": "printf 'node-a\\nnode-b\\n'",
    }
    for name, body in tools.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def start(command: list[str], **variables: str):
        environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **variables}
        environment["HOME"] = str(tmp_path)
        subprocess.run(command, env=environment, check=True)
        arguments, seen = json.loads(note.read_text())
        launch = parse_args(arguments)  # torchrun's own: refuses what it does not know
        assert launch.module and launch.training_script == "ftkit.finetune"
        (config,) = HfArgumentParser(Config).parse_args_into_dataclasses(launch.training_script_args)
        return launch, config, seen

    return start


def test_slurm(engine):
    variables = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "77"}
    launch, config, seen = engine(["bash", str(DEPLOY / "slurm/finetune.sbatch"), *FLAGS], **variables)
    assert (launch.nnodes, launch.nproc_per_node, launch.max_restarts) == ("2", "8", 3)
    assert (launch.rdzv_backend, launch.rdzv_endpoint, launch.rdzv_id) == ("c10d", "node-a:29500", "77")
    assert config.output == "/shared/runs/a" and config.save_every == 50
    assert seen["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


def test_skypilot(engine, tmp_path):
    task = yaml.safe_load((DEPLOY / "skypilot/finetune.yaml").read_text())
    (tmp_path / "ftkit/bin").mkdir(parents=True)
    (tmp_path / "ftkit/bin/torchrun").symlink_to(tmp_path / "bin/torchrun")
    variables = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}
    variables |= {"SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_TASK_ID": "sky-1", "MODEL": "m"}
    launch, config, seen = engine(["bash", "-c", task["run"]], **variables)
    assert (launch.nnodes, launch.nproc_per_node, launch.rdzv_id) == ("2", "8", "sky-1")
    assert launch.rdzv_endpoint == "10.0.0.1:29500" and config.output == "/runs/sky-1"
    assert seen["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert task["num_nodes"] > 1 and set(task["envs"]) == {"MODEL", "BUCKET"}


def test_runpod_on_one_machine_and_on_several(engine):
    command = ["bash", str(DEPLOY / "runpod/finetune.sh"), *FLAGS]
    launch, config, _ = engine(command, RUNPOD_GPU_COUNT="4")
    assert (launch.nnodes, launch.nproc_per_node, launch.rdzv_id) == ("1:1", "4", config.output)
    variables = {"NUM_NODES": "2", "NUM_TRAINERS": "8", "PRIMARY_ADDR": "10.0.0.1", "PRIMARY_PORT": "29400"}
    launch, config, seen = engine(command, **variables)
    assert (launch.nnodes, launch.nproc_per_node) == ("2", "8")
    assert launch.rdzv_endpoint == "10.0.0.1:29400" and seen["GLOO_SOCKET_IFNAME"] == "ens1"
    assert seen["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
