"""`make gpu` without a GPU: every piece on a CPU, the verdicts on made-up records, and the whole run at tiny size."""

import json
import os
import sys
import time
from dataclasses import replace

import psutil
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from experiments.gpu import __main__ as command
from experiments.gpu import environment, fine_tune, masks, memory_plans, mfu, optimizer_step, program, steps, verdicts
from experiments.gpu.records import FILE, Skip, append, read
from experiments.gpu.report import markdown
from experiments.gpu.verdicts import F_OVER_FUSED, NO_EXTRA, WARM_UP
from experiments.optimizer_speed.optimizers import COMPACT, FREE, FUSED, ORIGINAL
from ftkit.models import meta_model

pytestmark = pytest.mark.thorough

CPU = torch.device("cpu")
TINY = {"length": 16, "rows": 8, "batch_size": 2, "micro_batch_size": 2}


def measured(module, **options) -> list[dict]:
    """What a step writes at tiny size."""
    found = []
    module.measure(CPU, True, found.append, **options)
    return found


def test_without_cuda_it_says_so_in_a_sentence_and_records_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert command.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_an_output_folder_is_never_written_twice(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main(["--tiny", "--output", str(tmp_path)])
    assert "give another --output" in capsys.readouterr().err


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    append(tmp_path, "masks", {"p": 0.3})
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": "masks", "p": ')
    assert read(tmp_path) == [{"step": "masks", "p": 0.3}]


def script(folder, text) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


STEP = steps.Step("masks", "a step", 20, "masks")


def test_a_step_is_ended_at_its_time_limit_with_all_that_it_started(tmp_path, monkeypatch):
    pid = tmp_path / "pid"
    monkeypatch.setattr(sys, "executable", script(tmp_path, f"sleep 60 & echo $! > {pid}; wait"))
    monkeypatch.setattr(steps, "SLACK", 1)
    steps.run_step(replace(STEP, limit=1), tmp_path, True, left=100)
    (ended,) = read(tmp_path)
    assert (ended["step"], ended["status"]) == ("masks", "out of time") and ended["seconds"] < 30
    until = time.monotonic() + 10
    while alive(int(pid.read_text())) and time.monotonic() < until:
        time.sleep(0.1)
    assert not alive(int(pid.read_text()))


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_step_that_fails_leaves_its_last_words_and_none_starts_after_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", script(tmp_path, "echo out of memory; exit 1"))
    steps.run_step(STEP, tmp_path, True, left=100)
    steps.run_step(STEP, tmp_path, True, left=0)
    failed, late = read(tmp_path)
    assert (failed["status"], failed["why"]) == ("failed", "out of memory")
    assert late["status"] == "not started"


def test_one_device_is_seen_and_at_tiny_size_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    assert steps._environment(False)["CUDA_VISIBLE_DEVICES"] == "3"
    assert steps._environment(True)["CUDA_VISIBLE_DEVICES"] == ""


def test_masks_are_compared_and_another_seed_differs(monkeypatch):
    found = masks.differences(CPU, [(33, 65)], 0.3, torch.float32)
    assert found["differing"] == 0 and found["differing_from_another_seed"] > 0 and found["elements"] == 2 * 33 * 65
    true = masks.gradient_mask
    monkeypatch.setattr(masks, "gradient_mask", lambda *a, step, **k: true(*a, step=step + 1, **k))
    assert masks.differences(CPU, [(33, 65)], 0.3, torch.float32)["differing"] > 0


def test_every_round_of_the_optimizers_is_written_as_it_ends(monkeypatch):
    monkeypatch.setitem(optimizer_step.SIZES, True, (1000, 2, 2))
    records = measured(optimizer_step)
    assert [list(r["seconds"]) for r in records if "round" in r] == [list(optimizer_step.CANDIDATES)] * 2


def test_a_plan_is_estimated_and_measured_by_the_program(monkeypatch):
    monkeypatch.setattr(memory_plans, "PLANS", {"LoRA": {"method": "lora"}})
    (found,) = measured(memory_plans)
    assert 0.9 < found["estimated_bytes"] / found["measured_bytes"] < 1.1


def test_flops_are_those_that_torch_counts():
    """The formula is notebook 11's; a tied embedding counts, because the head multiplies by it."""
    with program.prepared("tiny", **TINY) as job:
        model = program.random_model(job.data.source, device=CPU)
        model.set_attn_implementation("eager")  # which torch can count
        ids = torch.tensor([row["input_ids"] for row in job.data.train])
        with FlopCounterMode(display=False) as counter:
            model(ids, labels=ids).loss.backward()
        formula = mfu.flops_per_token(model.config, mfu.parameters_in_products(model), ids.shape[1])
        assert formula * ids.numel() == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(("shape", "billions"), [("Llama-3.2-1B", 1.236), ("Llama-3-8B", 8.030)])
def test_shapes_have_the_published_numbers_of_parameters(shape, billions):
    with program.prepared(shape, **TINY) as job:
        assert meta_model(job.data.source).num_parameters() == pytest.approx(billions * 1e9, rel=1e-3)


def test_a_fine_tune_takes_the_largest_batch_that_fits_or_says_why_not(monkeypatch):
    records = measured(fine_tune, shape="Llama-3-8B")
    assert records[0]["flags"]["batch_size"] == max(fine_tune.MICRO_BATCHES)
    assert len(records[1]["losses"]) == fine_tune.STEPS[True] == len(records[1]["seconds"]) + 1
    peaks = dict.fromkeys(fine_tune.MICRO_BATCHES)

    def estimate(job):
        peaks[job.run.config.batch_size] = True
        return type("Estimate", (), {"peak": 2 * fine_tune.GIB})

    monkeypatch.setattr(fine_tune, "estimate", estimate)
    with pytest.raises(Skip, match="does not fit: 2 GiB estimated for one sequence"):
        measured(fine_tune, shape="Llama-3-8B")
    assert all(peaks.values())


MACHINE = {"step": "environment", "date": "1970-01-01", "tiny": False, "device": "NVIDIA H200", "cores": 1}
MACHINE |= {"versions": {"torch": "0"}, "memory_bytes": 2**30, "capability": "9.0", "cuda": "0"}
MACHINE |= {"other_programs_bytes": 0}


def played() -> list[dict]:
    """Records of a run that never was, in which every target is met: a test's, and nothing else's."""
    seconds = {FUSED: 1.0, FREE: F_OVER_FUSED, COMPACT: 0.5, ORIGINAL: 9.0}
    kept = {"elements": 100, "differing": 0, "differing_from_another_seed": 40, "steps": 2, "by_kernel": 2}
    sizes = {"shape": "s", "tokens_per_step": 1000, "flops_per_token": 989e12 / 2000, "estimated_bytes": 2**30}
    steps_taken = {"seconds": [9.0] * WARM_UP + [1.0], "losses": [3.0, 2.0], "peak_bytes": 2**30}
    return [
        MACHINE,
        {"step": "ceilings", "copy_bytes": 8, "copy_seconds": [1.0]},
        {"step": "ceilings", "matmul_flops": 2e12, "matmul_seconds": [1.0]},
        {"step": "masks", "p": 0.3, "dtype": "float32", **kept},
        {"step": "optimizer", "elements": 100, "tensors": 1},
        *({"step": "optimizer", "candidate": name, "state": 8, "extra": 7} for name in seconds),
        *({"step": "optimizer", "round": i, "seconds": seconds} for i in range(3)),
        {"step": "memory", "plan": "full", "shape": "s", "length": 8, "estimated_bytes": 102, "measured_bytes": 100}
        | {"phase": "forward"},
        *({"step": name, **part} for name in ("1B", "8B compiled") for part in (sizes, steps_taken)),
        *({"step": f"peer {name}", "shape": "s", "tokens_per_step": 1000, **steps_taken} for name in steps.CONTENDERS),
        {"step": "masks", "status": "done", "seconds": 1.0},
    ]


def changed(step: str, **values) -> list[dict]:
    """The played records with `values` in every record of a step that has their keys."""
    records = []
    for record in played():
        if record["step"] == step and values.keys() <= record.keys():
            record = record | values
        records.append(record)
    return records


def missed(records: list[dict]) -> list[str]:
    return [v.target for v in verdicts.verdicts(records) if v.met is False]


def test_a_run_that_meets_every_target():
    assert [v.met for v in verdicts.verdicts(played())] == [True] * 10


@pytest.mark.parametrize(
    ("step", "values", "target"),
    [
        ("masks", {"differing": 1}, "equal masks"),
        ("masks", {"differing_from_another_seed": 0}, "equal masks"),
        ("optimizer", {"round": 0, "seconds": {FUSED: 1.0, FREE: 1.06}}, "1.05 times"),
        ("memory", {"estimated_bytes": 94}, "estimated peaks"),
        ("1B", {"tokens_per_step": 999}, "1B shape"),
        ("8B compiled", {"tokens_per_step": 999}, "8B shape"),
        ("peer TRL", {"losses": [3.1, 2.0]}, "equal losses"),
        ("peer TRL", {"tokens_per_step": 1001}, "tokens per second as TRL"),
    ],
)
def test_each_target_can_be_missed(step, values, target):
    found = missed(changed(step, **values))
    assert len(found) == 1 and target in found[0]


def test_extra_memory_beyond_adamws_misses_its_target():
    records = [r | {"extra": 8 + NO_EXTRA} if r.get("candidate") == FREE else r for r in played()]
    assert missed(records) == ["task-free child-tuning needs no more extra memory than fused AdamW"]


def test_a_run_that_was_cut_off_has_a_report_and_no_verdict_that_it_did_not_measure():
    for count in range(len(played())):
        records = played()[:count]
        assert "## Targets" in markdown(records) and not missed(records)
    assert all(v.met is None for v in verdicts.verdicts([MACHINE]))
    assert "skipped: Liger is not installed" in markdown(
        [*played(), {"step": "peer TRL with Liger", "skipped": "Liger is not installed"}]
    )


def test_tiny_records_judge_nothing_about_a_gpu():
    found = verdicts.verdicts([MACHINE | {"tiny": True}, *played()[1:]])
    assert [v.target.split(":")[0] for v in found if v.met is not None] == ["equal masks", "equal losses"]
    assert {v.measured for v in found if v.met is None} == {"needs CUDA"}


def test_versions_and_device_are_recorded():
    (found,) = measured(environment)
    assert found["device"] == "CPU" and found["tiny"] and found["versions"]["torch"] == torch.__version__


@pytest.mark.gpu
def test_the_whole_run_at_tiny_size(tmp_path, capsys):
    folder = tmp_path / "run"
    before = os.times()
    assert command.main(["--tiny", "--output", str(folder)]) == 0
    after = os.times()
    assert sum(after[2:4]) - sum(before[2:4]) < 120, "CPU seconds of all steps"
    assert {path.name for path in folder.iterdir()} == {"records.jsonl", "report.md", "log.txt"}
    found = verdicts.verdicts(read(folder))
    assert [v.met for v in found if v.met is not None] == [True, True]
    printed = capsys.readouterr().out
    assert "Nothing below says anything about a GPU" in printed
    assert command.main(["--report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() in printed
    assert json.loads((folder / FILE).read_text().splitlines()[0])["device"] == "CPU"
