"""How matrices move: against figures by hand, the stored runs' completeness, and one of them repeated."""

import random

import pytest
import torch

from ftcourse.studies import dora, trade_off
from ftcourse.studies.records import read_records, trial_of
from ftkit.adapters import attach
from ftkit.models import data_dir, load_base

pytestmark = pytest.mark.thorough

RUNS = read_records(data_dir() / "results" / "dora.jsonl")


def test_movement_tells_length_from_direction():
    before = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    longer = torch.tensor([[6.0, 8.0], [0.0, 2.0]])
    assert dora.movement(before, longer) == (pytest.approx(2.5), pytest.approx(0))  # 5 and 0, over two rows
    turned = torch.tensor([[-4.0, 3.0], [0.0, 2.0]])
    assert dora.movement(before, turned) == (pytest.approx(0), pytest.approx(0.5))  # a right angle, and none


@pytest.mark.parametrize("row", dora.METHODS)
def test_what_a_matrix_amounts_to_is_what_the_model_computes(row):
    torch.manual_seed(0)
    tuned = attach(load_base()[0], row)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    found = dora.layer_matrices(tuned)
    assert len(found) == 28
    plain = load_base()[0]
    with torch.no_grad():
        own = dict(tuned.named_parameters())
        if row == "full":
            plain.load_state_dict(tuned.state_dict())
        for name, weight in found.items():
            assert not torch.equal(plain.get_submodule(name).weight, weight) or row == "full"
            plain.get_submodule(name).weight.copy_(weight)
        ids = torch.arange(10, 30)[None]
        torch.testing.assert_close(plain(ids).logits, tuned(ids).logits, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(own[n], p) for n, p in tuned.named_parameters())  # it was looked at, not changed


def test_the_stored_runs_are_complete():
    compared = trade_off.read()
    rates = {row: compared.best(trade_off.trial(name)) for row, name in dora.METHODS.items()}
    wanted = {dora.Trial(row, rates[row], seed) for row in dora.METHODS for seed in dora.SEEDS}
    assert {trial_of(run, dora.Trial) for run in RUNS} == wanted and len(RUNS) == len(wanted)
    for run in RUNS:
        assert len(run["points"]) == 28 * dora.MOMENTS
        assert {moment for moment, *_ in run["points"]} == set(range(1, dora.MOMENTS + 1))


def test_a_run_drawn_at_random_repeats():
    """Processors sum in different orders, and 60 steps let that grow. Full fine-tuning moves the matrices a tenth as
    far as the others, and seeds differ by 15 % at most."""
    committed = random.choice(RUNS)
    again = dora.run(trial_of(committed, dora.Trial))
    for position in (2, 3):
        ours, theirs = (
            sum(point[position] for point in run["points"] if point[0] == dora.MOMENTS) for run in (again, committed)
        )
        assert ours == pytest.approx(theirs, rel=0.15), committed["row"]


def test_correlation_by_hand():
    points = [
        [4, "a.q_proj", 1.0, 1.0],
        [4, "b.q_proj", 2.0, 3.0],
        [4, "c.q_proj", 3.0, 2.0],
        [1, "a.v", 9.0, 0.0],
    ]
    records = [{"row": "full", "points": points}, {"row": "lora", "points": points}]
    assert dora.correlation(records, "full", lambda moment, name: moment == 4) == [pytest.approx(0.5)]
    assert dora.chosen_points(records[0], lambda moment, name: name == "a.v") == [(0.0, 9.0)]
