"""What notebook 13 shows of DDP and FSDP2, on 1, 2 and 4 ranks: equal to one process, and red where it is broken."""

import json
from pathlib import Path

import pytest

from tests.programs import run_program

PROGRAM = Path(__file__).with_name("fsdp_ranks.py")
# float32 keeps 7 digits; sums over rows and ranks in another order lose one or two of them.
TOLERANCE = 1e-5
BF16 = 2**-8  # the step of bfloat16, relative
EQUALITIES = ["ddp", "per_layer", "whole_model", "checkpoint_before", "checkpoint_after", "frozen"]


@pytest.fixture(scope="module", params=[1, 2, 4])
def run(request, tmp_path_factory):
    """(what the ranks found, how many ranks): one launch for each number of ranks."""
    folder = tmp_path_factory.mktemp("fsdp")
    run_program(PROGRAM, folder, request.param)
    return json.loads((folder / "fsdp.json").read_text()), request.param


def is_equal_and_can_fail(case: dict, ranks: int) -> bool:
    caught = case["one_percent"] > TOLERANCE
    if ranks > 1:  # on one rank a sum is its own mean
        caught = caught and case["sum_for_mean"] == pytest.approx(ranks - 1, rel=1e-3)
    return caught and case["apart"] < TOLERANCE


@pytest.mark.parametrize("case", EQUALITIES)
def test_gradients_are_those_of_a_single_process(run, case):
    result, ranks = run
    assert is_equal_and_can_fail(result[case], ranks), result[case]


def test_losses_are_those_of_a_single_process(run):
    assert run[0]["loss_apart"] < 1e-5


def test_frozen_parameters_have_no_gradient_and_comparing_notices(run):
    assert run[0]["frozen_against_all"] == float("inf")


def test_a_layer_is_whole_only_while_it_computes(run):
    result, _ = run
    assert result["before_in_after"] == [0, result["layer_bytes"], 0]


def test_wrapping_by_layer_holds_less_at_once_and_sends_more_often(run):
    result, ranks = run
    assert result["peak"]["whole"] == result["all_bytes"]
    rest = result["all_bytes"] - 3 * result["layer_bytes"]
    assert result["peak"]["layer"] == rest + result["layer_bytes"]
    if ranks > 1:  # a single rank sends nothing
        assert result["counts"]["whole"] == {"all_gather": 1, "reduce_scatter": 1}
        # The root once; each of 3 layers before its forward and again before its backward pass.
        assert result["counts"]["layer"] == {"all_gather": 7, "reduce_scatter": 4}
    else:
        assert result["counts"] == {"whole": {}, "layer": {}}


def test_clipping_takes_the_norm_over_all_ranks(run):
    result, ranks = run
    clipping = result["clipping"]
    assert clipping["norm_apart"] < TOLERANCE and clipping["apart"] < TOLERANCE
    assert clipping["unclipped"] > 0.1  # had it clipped nothing, this comparison would have noticed
    if ranks > 1:
        assert clipping["own_shards_apart"] > 0.05  # the norm of a rank's own shards is another one


def test_accumulation_may_reduce_once_and_must_reduce(run):
    result, ranks = run
    found = result["accumulation"]
    assert is_equal_and_can_fail(found["last"], ranks) and is_equal_and_can_fail(found["each"], ranks)
    assert found["never"]["apart"] == float("inf")
    if ranks > 1:
        assert [found[name]["reductions"] for name in ("last", "each", "never")] == [4, 8, 0]


def test_the_policy_casts_what_is_gathered_and_autocast_only_what_is_computed(run):
    result, _ = run
    policy, autocast = result["policy"], result["autocast"]
    for seen in (policy, autocast):
        assert seen["kept"] == seen["grad"] == "torch.float32" and seen["output"] == "torch.bfloat16"
        # Rounded somewhere, so not equal; and within a few steps of bfloat16.
        assert TOLERANCE < seen["apart"] < 32 * BF16 and 0 < seen["loss_apart"] < BF16
    assert [policy[k] for k in ("weight", "input", "residual")] == ["torch.bfloat16"] * 3
    assert [autocast[k] for k in ("weight", "input", "residual")] == ["torch.float32"] * 3


def test_an_optimizer_built_before_sharding_moves_nothing(run):
    assert run[0]["optimizer_before_shard_moves"] is False
