"""Each launch file, run with the variables its engine sets and a torchrun that only notes its arguments."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.utils import _parse_rendezvous_config
from torch.distributed.run import config_from_args, parse_args
from transformers import HfArgumentParser

from ftkit.finetune.config import Config, parse_config
from tests import ROOT

DEPLOY = ROOT / "deploy"
RUNPOD = ["bash", str(DEPLOY / "runpod/finetune.sh")]
FLAGS = ["--model", "m", "--output", "/shared/runs/a", "--save_every", "50"]
CLUSTER = {"NUM_NODES": "2", "NUM_TRAINERS": "8", "PRIMARY_ADDR": "10.0.0.1", "PRIMARY_PORT": "29400"}
SKYPILOT = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "0"}
SKYPILOT |= {"SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_TASK_ID": "sky-1"}


def write_tool(path, body):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def is_host(launch):
    """What torch reads from --rdzv-conf: whether this machine keeps the rendezvous; None if nothing is said."""
    conf = _parse_rendezvous_config(launch.rdzv_conf or "")
    return RendezvousParameters("c10d", launch.rdzv_endpoint, "x", 1, 2, **conf).get_as_bool("is_host")


@pytest.fixture
def engine(tmp_path, cold):
    """A folder for PATH: torchrun notes arguments and environment, srun runs its command, scontrol names hosts."""
    note = tmp_path / "note.json"
    program = f"import json, os, sys; json.dump([sys.argv[1:], dict(os.environ)], open({str(note)!r}, 'w'))"
    python = shlex.quote(sys.executable)
    tools = {
        "torchrun": f'exec {python} -c {shlex.quote(program)} "$@"',
        "python3": f'exec {python} "$@"',
        "srun": 'SLURM_NODEID="${TEST_NODEID:-0}" exec "$@"',
        "scontrol": "printf 'node-a\\nnode-b\\n'",
    }
    for name, body in tools.items():
        write_tool(tmp_path / "bin" / name, body)

    def start(command: list[str], **variables: str):
        environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **variables}
        environment["HOME"] = str(tmp_path)
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise ValueError(done.stderr)
        arguments, seen = json.loads(note.read_text())
        launch = parse_args(arguments)  # torchrun's own: refuses what it does not know
        assert launch.module and launch.training_script == "ftkit.finetune"
        return launch, launch.training_script_args, seen

    return start


def config_of(arguments):
    (config,) = HfArgumentParser(Config).parse_args_into_dataclasses(arguments)
    return config


@pytest.mark.parametrize("node", ["0", "1"])
def test_slurm(engine, node, monkeypatch):
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    variables = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "77", "TEST_NODEID": node}
    launch, arguments, seen = engine(["bash", str(DEPLOY / "slurm/finetune.sbatch"), *FLAGS], **variables)
    assert (launch.nnodes, launch.nproc_per_node, launch.max_restarts) == ("2", "8", 3)
    assert (launch.rdzv_backend, launch.rdzv_endpoint, launch.rdzv_id) == ("c10d", "node-a:29500", "77")
    assert is_host(launch) is (node == "0")
    config = config_of(arguments)
    assert config.output == "/shared/runs/a" and config.save_every == 50
    assert seen["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    # Slurm's warning would be worth 30 of its seconds only, and a checkpoint of 8B takes 48.
    (warning,) = re.findall(r"^#SBATCH --signal=TERM@(\d+)$", (DEPLOY / "slurm/finetune.sbatch").read_text(), re.M)
    assert config_from_args(launch)[0].shutdown_timeout == 30  # torchrun's own
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", seen["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert config_from_args(launch)[0].shutdown_timeout == int(warning) >= 120


def skypilot(engine, tmp_path, file, **variables):
    task = yaml.safe_load((DEPLOY / "skypilot" / file).read_text())
    (tmp_path / "ftkit/bin").mkdir(parents=True, exist_ok=True)
    shutil.copy(tmp_path / "bin/torchrun", tmp_path / "ftkit/bin/torchrun")
    given = {name: value or "" for name, value in task["envs"].items()} | SKYPILOT | variables
    launch, arguments, seen = engine(["bash", "-c", task["run"]], **given)
    return task, launch, config_of(arguments), seen


@pytest.mark.parametrize("rank", ["0", "1"])
def test_skypilot_on_several_machines_with_a_shared_file_system(engine, tmp_path, rank):
    given = {"MODEL": "m", "DATA": "/shared/chats.jsonl", "SKYPILOT_NODE_RANK": rank}
    task, launch, config, seen = skypilot(engine, tmp_path, "finetune.yaml", **given)
    assert (launch.nnodes, launch.nproc_per_node, launch.rdzv_id) == ("2", "8", "sky-1")
    assert launch.rdzv_endpoint == "10.0.0.1:29500" and is_host(launch) is (rank == "0")
    assert (config.model, config.data, config.output) == ("m", "/shared/chats.jsonl", "/shared/runs/sky-1")
    assert (config.batch_size, config.save_every) == (64, 50)
    assert seen["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    # What rank 0 checks, others write: it must be one file system, and a bucket is not.
    assert task["num_nodes"] > 1 and "file_mounts" not in task
    volume = yaml.safe_load((DEPLOY / "skypilot/volume.yaml").read_text())
    assert task["volumes"] == {"/shared": volume["name"]} and volume["config"]["access_mode"] == "ReadWriteMany"


def test_skypilot_on_one_spot_machine_with_a_bucket_that_takes_appends(engine, tmp_path):
    task, launch, config, _ = skypilot(engine, tmp_path, "spot.yaml", FLAGS="--method lora")
    assert (launch.nnodes, launch.nproc_per_node, launch.rdzv_id) == ("1:1", "8", "sky-1")
    assert not launch.standalone, "it would get another id at each start, and not continue"
    assert (config.model, config.data, config.output, config.method) == ("", "", "/runs/sky-1", "lora")
    (mount,) = task["file_mounts"].values()
    assert task["num_nodes"] == 1 and mount["mode"] == "MOUNT_CACHED"
    # A checkpoint has its name before it is uploaded: the one before must still be in the bucket.
    default = config_of(["--output", "x", *shlex.split(task["envs"]["FLAGS"])])
    assert default.save_total_limit != 1 == Config.__dataclass_fields__["save_total_limit"].default


@pytest.mark.parametrize("file", ["finetune.yaml", "spot.yaml"])
def test_skypilot_installs_a_python_that_is_new_enough_and_the_pinned_versions(file):
    task = yaml.safe_load((DEPLOY / "skypilot" / file).read_text())
    assert "--python 3.11" in task["setup"] and "-c constraints.txt" in task["setup"]
    assert {"MODEL", "DATA", "FLAGS"} <= set(task["envs"])


def test_skypilot_itself_reads_the_files():
    sky = pytest.importorskip(
        "sky", reason="SkyPilot is not installed: pip install skypilot in an environment of its own"
    )
    for file in ("finetune.yaml", "spot.yaml"):
        task = sky.Task.from_yaml(str(DEPLOY / "skypilot" / file))
        assert task.num_nodes == (4 if file == "finetune.yaml" else 1)
        assert {"MODEL", "DATA", "FLAGS"} <= set(task.envs)


def test_runpod_on_one_machine_and_on_several(engine):
    launch, arguments, _ = engine([*RUNPOD, *FLAGS], RUNPOD_GPU_COUNT="4")
    assert (launch.nnodes, launch.nproc_per_node, launch.rdzv_id) == ("1:1", "4", config_of(arguments).output)
    for rank in ("0", "1"):
        launch, arguments, seen = engine([*RUNPOD, *FLAGS], **CLUSTER, NODE_RANK=rank)
        assert (launch.nnodes, launch.nproc_per_node) == ("2", "8")
        assert launch.rdzv_endpoint == "10.0.0.1:29400" and is_host(launch) is (rank == "0")
        assert seen["GLOO_SOCKET_IFNAME"] == "ens1" and seen["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


@pytest.mark.parametrize("way", ["--output X", "--output=X", "run.yaml"])
def test_runpod_names_the_run_by_its_output_however_that_is_given(engine, tmp_path, way):
    output = "/workspace/runs/a b"
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"output": output, "lr": 1e-4}))
    words = {"--output X": ["--output", output], "--output=X": [f"--output={output}"], "run.yaml": [str(file)]}
    launch, arguments, _ = engine([*RUNPOD, *words[way]])
    assert launch.rdzv_id == output == parse_config(arguments).output


@pytest.mark.parametrize(("words", "said"), [([], "give --output"), (["no.yaml"], "no.yaml")])
def test_runpod_without_an_output_says_so_and_starts_nothing(engine, words, said):
    with pytest.raises(ValueError, match=said):
        engine([*RUNPOD, *words])


def test_runpod_installs_ftkit_with_pinned_versions_where_it_is_missing(engine, tmp_path):
    bare, venv = tmp_path / "bare", tmp_path / "venv"
    # A python3 without packages, and a python3.11 whose venv notes what pip is asked for.
    write_tool(bare / "python3", f'exec {shlex.quote(sys.executable)} -I -S "$@"')
    made = f'mkdir -p "$3/bin"; cp {tmp_path}/bin/python3 {tmp_path}/bin/torchrun "$3/bin"\n'
    made += f'printf \'#!/bin/sh\\necho "$@" >>{tmp_path}/pip.txt\\n\' >"$3/bin/pip"; chmod +x "$3/bin/pip"'
    write_tool(bare / "python3.11", f'[ "$1" = -m ] || exec {shlex.quote(sys.executable)} "$@"\n{made}')
    variables = {"PATH": f"{bare}:{os.environ['PATH']}", "FTKIT_VENV": str(venv)}
    launch, _, seen = engine([*RUNPOD, *FLAGS], **variables)
    assert launch.rdzv_id == "/shared/runs/a" and seen["PATH"].startswith(f"{venv}/bin:")
    assert (tmp_path / "pip.txt").read_text() == f"install -q -c {ROOT}/constraints.txt {ROOT}\n"
    engine([*RUNPOD, *FLAGS], **variables)  # the second time it is there
    assert len((tmp_path / "pip.txt").read_text().splitlines()) == 1
