"""What the program tells of its memory is what its own steps use: for every optimizer, frozen or not, on every mesh.

One program runs all cases of 2 and of 4 ranks; the single process runs here, and so do the estimates.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from ftkit.child_tuning import load_masks
from ftkit.distributed.device import pick_device
from ftkit.distributed.mesh import DistributedContext, ParallelDims
from ftkit.finetune import train
from ftkit.finetune.config import Config, Run, choices, validate
from ftkit.finetune.data import make_batches, read_training_data
from ftkit.finetune.memory import KEPT_TRACES, _estimate, _traces, plan_of_step
from ftkit.finetune.optimizers import OPTIMIZERS
from ftkit.memory import Estimate, MemoryPlan, estimate_memory
from ftkit.memory.step import apply_method
from ftkit.memory.trace import copy_to_meta, trace
from ftkit.models import meta_model
from tests.programs import run_program
from tests.tiny import foreign_model, foreign_tokenizer, ragged_conversations

from .memory_ranks import measure

pytestmark = pytest.mark.thorough

MESHES = {"1,1,1": 1, "1,2,1": 2, "2,1,1": 2, "1,1,2": 2, "2,2,1": 4}
FROZEN = r"embed_tokens|layers\.0\."
CASES = [(o, frozen, m) for o in ("adamw", "child-tuning", "child-tuning-d") for frozen in ("", FROZEN) for m in MESHES]
CHUNKED = "adamw, chunked"  # as adamw, with --loss_chunk
CASES += [(CHUNKED, "", m) for m in ("1,1,1", "1,2,1", "1,1,2")]


def config_of(folder: Path, case: tuple[str, str, str]) -> Config:
    optimizer, freeze, mesh = case
    size = ParallelDims.parse(mesh, MESHES[mesh])
    return Config(
        output=str(folder / "-".join((optimizer, "frozen" if freeze else "whole", mesh))),
        model=str(folder / "qwen"),
        data=str(folder / "chats.jsonl"),
        optimizer=optimizer.partition(",")[0],
        loss_chunk=5 if optimizer == CHUNKED else 0,
        freeze=freeze,
        mesh=mesh,
        batch_size=2 * size.dp_replicate * size.dp_shard,  # two rows a rank, of which one is padded
        micro_batch_size=2,
        fisher_rows=1,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run_memory")
    small = foreign_model()
    del small.model.layers[2:]
    small.config.num_hidden_layers, small.config.layer_types = 2, small.config.layer_types[:2]
    small.save_pretrained(folder / "qwen")
    foreign_tokenizer().save_pretrained(folder / "qwen")
    (folder / "chats.jsonl").write_text("\n".join(json.dumps(row) for row in ragged_conversations(16)))
    return folder


@pytest.fixture(scope="module")
def measured(folder):
    """Bytes on rank 0, by case."""
    found = {}
    for case in (case for case in CASES if MESHES[case[2]] == 1):
        found[case] = measure(validate(config_of(folder, case)), DistributedContext(0, 1, pick_device(), None))
    several = {n: [case for case in CASES if MESHES[case[2]] == n] for n in (2, 4)}
    fields = {n: [vars(config_of(folder, case)) for case in cases] for n, cases in several.items()}
    (folder / "cases.json").write_text(json.dumps(fields))
    run_program(Path(__file__).with_name("memory_ranks.py"), folder / "cases.json", folder)
    for n, cases in several.items():
        found |= zip(cases, json.loads((folder / f"{n}.json").read_text()), strict=True)
    return found


def run_of(folder: Path, case: tuple[str, str, str]) -> Run:
    """The run of a case as rank 0 has it, without its ranks."""
    config = config_of(folder, case)
    run = validate(replace(config, mesh="", output=str(folder / "new")))
    return replace(run, config=config, dims=ParallelDims.parse(config.mesh, MESHES[config.mesh]))


@pytest.fixture(scope="module")
def plan_for(folder):
    """The plan of a case's second step, as the program makes it, from training data that is read once."""
    data = read_training_data(run_of(folder, CASES[0]))

    def plan_for(case: tuple[str, str, str]) -> MemoryPlan:
        run = run_of(folder, case)
        context = DistributedContext(0, MESHES[case[2]], run.device_info, None, None, run.dims)
        batches = make_batches(run, data, context)
        return plan_of_step(run, batches.local(batches[1]))

    return plan_for


@pytest.fixture(scope="module")
def estimate(folder):
    """The estimate of a plan: those that differ in the optimizer alone share a trace."""

    traces = {}

    def estimate(plan: MemoryPlan, masks=None) -> Estimate:
        key = (plan.mesh, plan.ddp, plan.reshard_after_forward, plan.freeze, plan.max_length, plan.loss_chunk)
        if key not in traces:
            traces[key] = trace(apply_method(copy_to_meta(meta_model(str(folder / "qwen"))), plan), plan)
        return estimate_memory(meta_model(str(folder / "qwen")), plan, masks, traced=traces[key])

    return estimate


def masks_of(folder: Path, case: tuple[str, str, str]) -> dict[str, torch.Tensor] | None:
    """Before a run nobody knows where the child will lie; the masks that it stored make the count exact."""
    return (
        load_masks(Path(config_of(folder, case).output, "masks.safetensors")) if case[0] == "child-tuning-d" else None
    )


def off(told: Estimate, found: dict[str, int]) -> dict[str, int]:
    """How many bytes an estimate is wrong by; the counters of steps, 4 bytes for each tensor, it leaves out."""
    apart = {kind: getattr(told, kind) - found[kind] for kind in ("weights", "gradients", "optimizer")}
    return {**apart, "peak": told.peak + found["counters"] - found["peak"]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join((case[0], "frozen" if case[1] else "all", case[2])))
def test_a_run_uses_what_was_told_to_the_byte(folder, measured, plan_for, estimate, case):
    told = estimate(plan_for(case), masks_of(folder, case))
    assert off(told, measured[case]) == {"weights": 0, "gradients": 0, "optimizer": 0, "peak": 0}


@pytest.mark.parametrize("case", [case for case in CASES if case[0] == "child-tuning-d" and not case[1]])
def test_before_its_masks_are_there_the_child_is_told_within_a_few_percent(measured, plan_for, estimate, case):
    assert estimate(plan_for(case)).peak == pytest.approx(measured[case]["peak"], rel=0.05)


@pytest.mark.parametrize(
    ("case", "mistake"),
    [
        (("adamw", "", "2,1,1"), {"ddp": True}),
        (("adamw", "", "2,1,1"), {"mesh": (1, 2, 1)}),
        (("adamw", "", "1,1,2"), {"mesh": (1, 2, 1)}),
        (("adamw", FROZEN, "1,1,1"), {"method": "full", "freeze": ""}),
        (("child-tuning", FROZEN, "1,2,1"), {"method": "full", "freeze": ""}),
        (("child-tuning", "", "1,1,1"), {"optimizer": "adamw"}),
        (("child-tuning-d", "", "1,1,1"), {"optimizer": "adamw"}),
        (("adamw", "", "1,1,1"), {"optimizer": "child-tuning", "kernel": "loop"}),
        (("adamw", "", "1,2,1"), {"reshard_after_forward": False}),
        ((CHUNKED, "", "1,1,1"), {"loss_chunk": 0}),
        ((CHUNKED, "", "1,2,1"), {"loss_chunk": 0}),
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_an_estimate_of_another_program_would_show(folder, measured, plan_for, estimate, case, mistake):
    """Mutations, each a mistake that an estimate could make about a run."""
    plan = plan_for(case)
    wrong = estimate(replace(plan, **mistake), masks_of(folder, case))
    assert abs(off(wrong, measured[case])["peak"]) > 0.01 * measured[case]["peak"]


def test_every_optimizer_of_the_program_is_known_to_estimates(folder):
    assert list(OPTIMIZERS) == choices("optimizer")
    for entry in OPTIMIZERS.values():
        MemoryPlan(**entry.memory)  # raises for a field or a value that it does not know
    with pytest.raises(
        ValueError, match="--optimizer is 'sgd': give one of adamw, child-tuning, child-tuning-d, adamw_8bit"
    ):
        validate(replace(config_of(folder, CASES[0]), optimizer="sgd"))


def test_a_shared_trace_tells_what_a_trace_of_its_own_does(folder):
    """Runs of one process share the trace where they differ in the optimizer alone, and nowhere else."""
    source = str(folder / "qwen")
    first = MemoryPlan(max_length=16, micro_batch_size=2)
    plans = [first, replace(first, optimizer="child-tuning"), replace(first, max_length=24)]
    plans += [replace(first, freeze=FROZEN, method="frozen"), replace(first, kernel="foreach")]
    told = [_estimate(source, plan) for plan in plans]
    assert told == [estimate_memory(meta_model(source), plan) for plan in plans]
    assert told[0].traced is told[1].traced is told[4].traced


def test_few_traces_are_kept(folder):
    source = str(folder / "qwen")
    plans = [MemoryPlan(max_length=length, micro_batch_size=1) for length in range(2, KEPT_TRACES + 4)]
    told = [_estimate(source, plan) for plan in plans]
    assert len(_traces) == KEPT_TRACES
    assert _estimate(source, plans[-KEPT_TRACES]).traced is told[-KEPT_TRACES].traced  # used again: now the newest
    assert _estimate(source, plans[0]).traced is not told[0].traced
    assert _estimate(source, plans[-KEPT_TRACES]).traced is told[-KEPT_TRACES].traced


@pytest.mark.parametrize("extra", [{"packing": True}, {"estimate_memory": False}], ids=["packed", "no estimate"])
def test_a_packed_run_is_estimated_and_an_estimate_can_be_left_out(folder, capsys, extra):
    given = {**vars(config_of(folder, ("adamw", "", "1,1,1"))), **extra}
    given |= {
        "output": str(folder / "-".join(extra)),
        "max_steps": 2,
        "max_length": 64,
        "batch_size": 8,
        "micro_batch_size": 8,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(given))
    train.main([str(path)])
    said = "".join(capsys.readouterr())
    assert ("estimated peak" in said) == ("measured" in said) == ("packing" in extra)
    if "packing" in extra:
        assert re.search(r"measured \([+-]0\.0%\)", said), said


def test_a_run_prints_both_and_they_agree(folder, capsys):
    """From the command line, frozen, with child-tuning: this used to say that memory cannot be estimated."""
    case = ("child-tuning", FROZEN, "1,1,1")
    given = vars(config_of(folder, case)) | {
        "output": str(folder / "printed"),
        "max_steps": 2,
        "max_length": 64,
    }
    words = [w for name, value in given.items() if value not in ("", False) for w in (f"--{name}", str(value))]
    train.main(words)
    said = "".join(capsys.readouterr())
    assert "cannot be estimated" not in said and "for micro-batches of 2 sequences of 64 tokens" in said
    assert re.search(r"estimated \((?:for|back)ward[^)]*\), [\d.,]+ MiB measured \([+-]0\.0%\)", said)
