"""Launch lines: what is refused, what is called a risk, the plan of memory, and what a rehearsal keeps."""

import re

import pytest
import yaml

from ftcourse.launch_lines import (
    SLURM_FILE,
    SLURM_GPUS,
    SLURM_RESTARTS,
    SMALL,
    check_launch_line,
    find_risks,
    launch_lines_of,
    memory_plan,
    micro_batches,
    read_launch_line,
    rehearsal,
)
from ftkit.finetune.config import parse_config
from tests import ROOT

SAFE = r"""torchrun --standalone --nproc-per-node 8 --max-restarts 2 -m ftkit.finetune --output runs/a \
    --model M --data d/ --lr 1e-5 --batch_size 64 --micro_batch_size 4 --max_length 1024 --save_every 20"""
SLURM = f"sbatch --nodes 4 {SLURM_FILE} --output /s/a --model M --data d --lr 1e-5 --batch_size 64 --max_length 9"


def test_a_line_is_read_by_the_parsers_that_will_read_it():
    line = read_launch_line(SAFE)
    assert (line.nodes, line.gpus_per_node, line.gpus, line.max_restarts) == (1, 8, 8, 2)
    assert line.config.lr == 1e-5 and line.dims.sizes == (1, 8, 1) and "lr" in line.given
    assert find_risks(line) == [] and check_launch_line(SAFE) == line


def test_slurms_line_has_the_settings_of_slurms_file():
    line = read_launch_line(SLURM + " --save_every 5 --mesh 4,-1,1")
    assert (line.nodes, line.gpus, line.max_restarts) == (4, 32, 3) and line.dims.sizes == (4, 8, 1)
    text = (ROOT / SLURM_FILE).read_text()
    assert re.search(r"--gpus-per-node=(\d+)", text)[1] == str(SLURM_GPUS)
    assert re.search(r"--max-restarts (\d+)", text)[1] == str(SLURM_RESTARTS)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("python train.py", "begins with torchrun or sbatch"),
        (SAFE.replace("--standalone", "--alone"), "torchrun: unrecognized arguments"),
        (SAFE.replace("ftkit.finetune", "train"), "another program"),
        (SAFE.replace("-m ftkit.finetune", "train.py"), "another program"),
        (SAFE.replace("--nproc-per-node 8", "--nproc-per-node gpu"), "whole numbers"),
        (SAFE.replace("--standalone", "--nnodes 2"), "a rendezvous"),
        (SAFE.replace("--standalone", "--nnodes 1:4"), "whole numbers"),
        (SAFE + " --learning_rate 3", "--learning_rate"),
        (SAFE + " --batch_size 0", "--batch_size is 0"),
        (SAFE + " --lora_dropout 0.1", "--lora_dropout is LoRA's"),
        (SAFE + " --mesh 4,8,1", "32 ranks, and 8 are started"),
        (SAFE + " --method lora --mesh 1,4,2", "tensor parallelism"),
        (SAFE.replace("--output runs/a", ""), "output"),
        ("sbatch --nodes 4 other.sbatch --output a", "write: sbatch --nodes N"),
        (f"sbatch --nodes many {SLURM_FILE} --output a", "write: sbatch --nodes N"),
    ],
)
def test_what_would_not_start_is_refused(line, why):
    with pytest.raises(ValueError, match=re.escape(why)):
        read_launch_line(line)


@pytest.mark.parametrize(
    ("line", "risk"),
    [
        (SAFE.replace("--lr 1e-5", ""), "no --lr"),
        (SAFE.replace("--save_every 20", ""), "each of 2 restarts begins at step 0"),
        (SAFE.replace("--max-restarts 2", ""), "no --max-restarts"),
        (SAFE.replace("--batch_size 64", "--batch_size 4"), "less than one example for each of 8"),
        (SAFE.replace("--data d/", ""), "no --data"),
        (SAFE.replace("--model M", ""), "no --model"),
        (SAFE.replace("--max_length 1024", ""), "over 512 tokens are truncated"),
        (SLURM.replace("/s/a", "s/a") + " --save_every 5", "not an absolute path"),
    ],
)
def test_each_risk_is_named(line, risk):
    (found,) = find_risks(read_launch_line(line))
    assert risk in found
    with pytest.raises(ValueError, match=re.escape(risk)):
        check_launch_line(line)


def test_the_plan_is_that_of_the_program_on_gpus():
    plan = memory_plan(read_launch_line(SAFE + " --activation_checkpointing --packing"), 1000)
    assert plan.mesh.sizes == (1, 8, 1) and plan.compute_dtype == "bfloat16" and plan.param_dtype == "float32"
    assert (plan.kernel, plan.accumulation, plan.micro_batch_size, plan.max_length) == ("fused", 2, 4, 1024)
    assert plan.packing and plan.activation_checkpointing
    lora = memory_plan(read_launch_line(SAFE + " --method lora --lora_r 4"), 100)
    assert lora.method == "lora" and lora.options["r"] == 4 and lora.param_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("flags", "tokens", "count"),
    [
        ("", 1000, 2),  # 64 sequences: 8 on each GPU, 4 at once
        (" --packing", 1000, 2),
        (" --packing", 100, 1),  # 7 packed sequences
        (" --mesh 1,4,2", 1000, 4),
        (" --micro_batch_size 8", 1000, 1),
    ],
)
def test_micro_batches_of_a_step(flags, tokens, count):
    line = read_launch_line(SAFE + flags)
    assert micro_batches(line, tokens) == count
    assert memory_plan(line, tokens).accumulation == min(2, count)


def test_a_rehearsal_keeps_every_flag_and_shrinks_values():
    line = read_launch_line(SAFE + " --method lora --lora_r 4 --packing --mesh 2,4,1")
    words = rehearsal(line, "out", lr=1e-3)
    config = parse_config(words)
    assert {word[2:] for word in words if word.startswith("--")} == (line.given | {"max_steps"}) - {"model", "data"}
    assert (config.model, config.data, config.output, config.mesh) == ("", "", "out", "2,1,1")
    assert config.lora_r == 4 and config.packing and config.lr == 1e-3
    assert {config.max_length, config.max_steps} == {SMALL["max_length"], SMALL["max_steps"]}
    assert "--packing" not in rehearsal(line, "out", packing=None)
    assert "--mesh" not in rehearsal(read_launch_line(SAFE), "out")


def test_lines_are_found_in_a_source():
    source = f'LINES = launch_lines_of(r"""\n# one\n{SAFE}\n# two words\n{SLURM}\n""")\n# no line\nprint()\n'
    assert launch_lines_of(source) == {"one": SAFE, "two words": SLURM}


def test_every_flag_that_a_rehearsal_shrinks_is_one_of_the_program():
    config = yaml.safe_load(yaml.safe_dump(vars(parse_config(["--output", "a"]))))
    assert SMALL.keys() <= config.keys()
