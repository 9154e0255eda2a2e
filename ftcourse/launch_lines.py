"""Launch lines of `ftkit.finetune`: read by torchrun's and the program's own parsers, checked, and rehearsed small.

`read_launch_line` refuses what either would refuse; `find_risks` names what would run and be regretted; `rehearsal`
shrinks a line so that this machine can run it, with the same flags.
"""

import argparse
import contextlib
import io
import math
import re
import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from ftkit.distributed.device import DeviceInfo
from ftkit.distributed.mesh import ParallelDims
from ftkit.finetune.config import Config, Run, parse_config, validate_value
from ftkit.finetune.lora import validate_lora_flags
from ftkit.finetune.memory import plan_of
from ftkit.memory import MemoryPlan

SLURM_FILE = "deploy/slurm/finetune.sbatch"
SLURM_GPUS, SLURM_RESTARTS = 8, 3  # per node, and of its torchrun
# What a rehearsal replaces by something small; every other flag stays as it is.
SMALL = {"model": "", "data": "", "eval_data": "", "batch_size": 16, "micro_batch_size": 2, "max_length": 128}
SMALL |= {"max_steps": 4, "eval_every": 0, "save_every": 2, "timeout": 2.0}


@dataclass(frozen=True)
class LaunchLine:
    """A launch line, parsed."""

    nodes: int
    gpus_per_node: int
    max_restarts: int
    config: Config
    given: frozenset[str]  # names of the flags that it states

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def dims(self) -> ParallelDims:
        return ParallelDims.parse(self.config.mesh, self.gpus)


def read_launch_line(text: str) -> LaunchLine:
    """Parse `torchrun … -m ftkit.finetune …` or `sbatch … deploy/slurm/finetune.sbatch …`; backslashes join lines.

    Raises ValueError, saying why, for what torchrun, Slurm's file or the program would refuse.
    """
    words = shlex.split(text.replace("\\\n", " "))
    if words[:1] == ["torchrun"]:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                from torch.distributed.run import parse_args

                launcher = parse_args(words[1:])
        except SystemExit:
            raise ValueError(f"torchrun: {said.getvalue().strip().rpartition('error: ')[2]}") from None
        if not (launcher.module and launcher.training_script == "ftkit.finetune"):
            raise ValueError("torchrun starts another program: write -m ftkit.finetune after torchrun's own flags")
        nodes, most = (launcher.nnodes.partition(":")[0], launcher.nnodes.rpartition(":")[2])
        if nodes != most or not (nodes.isdigit() and launcher.nproc_per_node.isdigit()):
            raise ValueError("give whole numbers to --nnodes and --nproc-per-node")
        nodes, gpus = int(nodes), int(launcher.nproc_per_node)
        restarts, flags = launcher.max_restarts, launcher.training_script_args
        if nodes > 1 and not launcher.rdzv_endpoint:
            raise ValueError("several nodes need a rendezvous: --rdzv-backend c10d --rdzv-endpoint HOST:PORT")
    elif words[:1] == ["sbatch"]:
        parser = argparse.ArgumentParser(exit_on_error=False)
        parser.add_argument("--nodes", "-N", type=int, default=4)
        try:
            at = words.index(SLURM_FILE)
            nodes = parser.parse_args(words[1:at]).nodes
        except (ValueError, argparse.ArgumentError, SystemExit):
            raise ValueError(f"write: sbatch --nodes N {SLURM_FILE} FLAGS") from None
        gpus, restarts, flags = SLURM_GPUS, SLURM_RESTARTS, words[at + 1 :]
    else:
        raise ValueError("a launch line begins with torchrun or sbatch")
    return LaunchLine(nodes, gpus, restarts, _read_flags(flags, nodes * gpus), frozenset(_names(flags)))


def _read_flags(flags: list[str], ranks: int) -> Config:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            config = parse_config(flags)
    except SystemExit:
        raise ValueError(said.getvalue().strip().rpartition("error: ")[2]) from None
    for item in fields(config):
        validate_value(item.name, item.type, getattr(config, item.name))
    validate_lora_flags(config)
    if config.method == "lora" and ParallelDims.parse(config.mesh, ranks).tp > 1:
        raise ValueError("--method lora does not run under tensor parallelism")
    ParallelDims.parse(config.mesh, ranks)
    return config


def _names(flags: list[str]) -> list[str]:
    return [word[2:].partition("=")[0] for word in flags if word.startswith("--")]


def find_risks(line: LaunchLine) -> list[str]:
    """What a run of this line would be regretted for, a sentence each; none for a line that is safe to start."""
    config, found = line.config, []
    parts = line.gpus // line.dims.tp
    if "lr" not in line.given:
        found.append(f"no --lr: the default {config.lr:g} was chosen for no model in particular")
    if not config.save_every:
        lost = f", so that each of {line.max_restarts} restarts begins at step 0" * bool(line.max_restarts)
        found.append(f"no --save_every: the only checkpoint is the one at the end{lost}")
    if not line.max_restarts:
        found.append("no --max-restarts: the first rank that dies ends the run until somebody looks")
    if config.batch_size < parts:
        found.append(f"--batch_size {config.batch_size} is less than one example for each of {parts} GPUs")
    if "data" not in line.given:
        found.append("no --data: it would train on the course's own chats")
    if "model" not in line.given:
        found.append("no --model: it would train pocket-base")
    if "max_length" not in line.given:
        found.append(f"no --max_length: conversations over {config.max_length} tokens are truncated")
    if line.nodes > 1 and not Path(config.output).is_absolute():
        found.append(f"--output {config.output} is not an absolute path: all nodes must share it")
    return found


def micro_batches(line: LaunchLine, tokens: int) -> int:
    """Forward passes of a step on each GPU, for conversations of `tokens` on average; packing fills 9 tenths."""
    config = line.config
    packed = math.ceil(config.batch_size * tokens / (0.9 * config.max_length))
    sequences = min(config.batch_size, packed) if config.packing else config.batch_size
    return math.ceil(math.ceil(sequences / (line.gpus // line.dims.tp)) / config.micro_batch_size)


def memory_plan(line: LaunchLine, tokens: int) -> MemoryPlan:
    """The plan of a step on GPUs in bfloat16, as the program makes it, for conversations of `tokens` on average."""
    device = DeviceInfo(torch.device("cuda"), "nccl", torch.bfloat16)
    run = Run(line.config, line.dims, device, torch.bfloat16, Path(line.config.output), False, [])
    # From the second micro-batch on, the peak is the same.
    return plan_of(run, line.config.micro_batch_size, line.config.max_length, min(2, micro_batches(line, tokens)))


def rehearsal(line: LaunchLine, output: str, **changes) -> list[str]:
    """The program's flags for the same run on two processes of this machine: pocket-base, few and short examples.

    `changes` replace flags once more; a value of None drops one.
    """
    small = {name: value for name, value in SMALL.items() if name in line.given or name == "max_steps"}
    if line.config.mesh:
        small["mesh"] = "1,1,2" if line.dims.tp > 1 else "2,1,1" if line.dims.dp_replicate > 1 else "1,2,1"
    config = replace(line.config, **{"output": output, **small, **{k: v for k, v in changes.items() if v is not None}})
    names = (line.given | small.keys() | changes.keys()) - {k for k, v in changes.items() if v is None}
    words = []
    for name in (item.name for item in fields(Config)):  # in the program's order
        value = getattr(config, name)
        if name in names | {"output"} and value != "":
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def launch_lines_of(source: str) -> dict[str, str]:
    """The launch lines in a notebook's source, by the word after `# ` in the line above each."""
    pattern = r"^# (.+)\n((?:torchrun|sbatch) (?:.*\\\n)*.*)$"
    return dict(re.findall(pattern, source, re.M))


def check_launch_line(text: str) -> LaunchLine:
    """`read_launch_line`; raises ValueError for a line with risks, too, and lists them."""
    line = read_launch_line(text)
    if risks := find_risks(line):
        raise ValueError("do not start this line: " + "; ".join(risks))
    return line
