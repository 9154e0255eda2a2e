"""Fault injection: real faults are survived, and a run that does not recover is reported."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.fault_injection import faults
from experiments.fault_injection.faults import SAVE_EVERY, STEPS, Fault, draw_fault, evaluate, fine_tune, prepare
from experiments.fault_injection.worker import ONLY_RANK_0, POINTS
from ftkit.finetune import train

pytestmark = pytest.mark.thorough

FAULT = Fault(ranks=1, point="backward", step=6, rank=0)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Flags, and the undisturbed run, in this process."""
    folder = tmp_path_factory.mktemp("drill")
    flags = prepare(folder)
    train.main([*flags, "--output", str(folder / "undisturbed" / "run")])
    return folder, flags


@pytest.fixture(scope="module")
def survived(setting):
    folder, flags = setting
    failure = fine_tune(folder / "struck", flags, 1, vars(FAULT))
    return evaluate(FAULT, folder / "struck", folder / "undisturbed", failure)


def test_at_least_twenty_points_over_all_kinds():
    drawn = [fault for ranks in (1, 2, 4) for fault in draw_fault(0, ranks)]
    assert len(drawn) >= 20 and {(s.ranks, s.point) for s in drawn} == {
        (ranks, point) for ranks in (1, 2, 4) for point in POINTS
    }
    assert all(0 <= s.rank < s.ranks and 1 <= s.step <= STEPS for s in drawn)
    assert all(s.rank == 0 for s in drawn if s.point in ONLY_RANK_0)
    assert draw_fault(0, 4) == draw_fault(0, 4) != draw_fault(1, 4)


def test_a_killed_run_recovers_bitwise_identically(survived):
    assert survived["faults"] == [] and survived["apart"] == 0
    assert 1 <= survived["done_again"] <= 2 * SAVE_EVERY
    assert survived["seconds_to_resume"] > 0


def test_a_broken_resume_is_reported(setting):
    """Negative control: the optimizer's first moments are forgotten."""
    folder, flags = setting
    failure = fine_tune(folder / "forgetful", flags, 1, {**vars(FAULT), "break_resume": True})
    found = evaluate(FAULT, folder / "forgetful", folder / "undisturbed", failure)
    assert any("weights differ" in fault for fault in found["faults"]) and found["apart"] > 0


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def nudge(folder):
    path = folder / "run" / "model" / "model.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    weights[name] = torch.nextafter(weights[name], torch.tensor(9.0))
    save_file(weights, path, {"format": "pt"})


def drop_a_line(folder):
    path = folder / "run" / "metrics.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[1:]))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: (f / "killed.json").unlink(), "never killed"),
        (nudge, "weights differ"),
        (drop_a_line, "losses differ"),
        (lambda f: edit(f / "resumed.json", step=0), "a whole checkpoint was not used"),
        (lambda f: edit(f / "killed.json", checkpoints=[], steps=7), "steps were done again, where"),
        (lambda f: (f / "run" / "model.incomplete").mkdir(), "half-written"),
    ],
)
def test_each_difference_is_reported(setting, survived, tmp_path, harm, said):
    folder, _ = setting
    shutil.copytree(folder / "struck", tmp_path / "struck")
    harm(tmp_path / "struck")
    found = evaluate(FAULT, tmp_path / "struck", folder / "undisturbed", "")
    assert any(said in fault for fault in found["faults"]), found["faults"]
    assert evaluate(FAULT, folder / "struck", folder / "undisturbed", "rank 0 said so")["faults"] == ["rank 0 said so"]


def test_the_table_counts_what_was_found(survived):
    lost = {**vars(replace(FAULT, ranks=2)), "faults": ["it hung"]}
    record = {
        "seed": 3,
        "steps": 8,
        "save_every": 2,
        "torch": "2",
        "machine": "2 cores",
        "strikes": [survived, lost],
    }
    table = faults.table(record)
    assert "| backward | 1 of 1 | 0 of 1 |" in table and "1 of 2 runs recovered" in table
    assert "equal to the bit" not in table  # of the one that hung nothing is known
    assert "| equal to the bit |" in faults.table({**record, "strikes": [survived]})
    assert faults.line(lost).endswith("killed in backward, step 6: it hung")
