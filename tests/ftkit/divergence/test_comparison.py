"""Planted faults are found at their step and module, and healthy pairs are not accused."""

from pathlib import Path

import pytest

from ftkit.divergence import compare, comparison
from ftkit.divergence.comparison import MARGIN
from tests.programs import run_program

from . import faults, runs

pytestmark = pytest.mark.thorough

RANKS = Path(__file__).with_name("ranks.py")

ONE_LAYER = f"model.layers.{faults.LAST}"
REFERENCES = [runs.Loop, runs.Clipped, runs.NearZero, runs.Lora, runs.Child, runs.Bfloat16]
# (the run, its reference)
HEALTHY_ALONE = [
    (runs.MicroBatches, runs.Loop),
    (runs.Checkpointed, runs.Loop),
    (runs.Packed, runs.Loop),
    (runs.Eager, runs.Loop),
    (runs.OneThread, runs.Loop),
    (runs.LossScale, runs.Loop),
    (runs.Resumed, runs.Loop),
    (runs.OtherSign, runs.NearZero),
    (runs.ManyBfloat16, runs.Bfloat16),
]
HEALTHY_RANKS = [  # with its mesh
    (runs.Fsdp, runs.Loop, "1,2,1"),
    (runs.Hsdp, runs.Loop, "2,1,1"),
    (runs.Parallel, runs.Loop, "1,1,2"),
    (runs.Ddp, runs.Loop, ""),
    (runs.ByHand, runs.Loop, ""),
    (runs.SumOfShares, runs.Loop, ""),
    (runs.ShardedClipped, runs.Clipped, ""),
    (runs.ShardedLora, runs.Lora, ""),
    (runs.ShardedChild, runs.Child, ""),
    (runs.ShardedBfloat16, runs.Bfloat16, ""),
]
# (the run, its reference, step, kind, module)
FAULTS_ALONE = [
    (faults.SummedLoss, runs.Loop, 0, "gradient of output", "lm_head"),
    (faults.MeanOfMeans, runs.Loop, 0, "gradient of output", "lm_head"),
    (faults.LostDivisor, runs.Loop, 0, "gradient of output", "lm_head"),
    (faults.AttentionScale, runs.Loop, 0, "output", f"{ONE_LAYER}.self_attn.o_proj"),
    (faults.StaleMask, runs.Loop, 0, "output", f"{ONE_LAYER}.self_attn.o_proj"),
    (faults.StaleAttentionMask, runs.Loop, 1, "token in the loss", ""),
    (faults.WrongPositions, runs.Loop, 0, "output", "model.rotary_emb"),
    (faults.Dropout, runs.Loop, 0, "output", f"{ONE_LAYER}.self_attn.o_proj"),
    (faults.LayerInBfloat16, runs.Loop, 0, "output", f"{ONE_LAYER}.mlp.gate_proj"),
    (faults.NormEpsilon, runs.Loop, 0, "output", f"{ONE_LAYER}.input_layernorm"),
    (faults.OtherClip, runs.Clipped, 0, "gradient", "model.embed_tokens"),
    (faults.ShiftedLabels, runs.Loop, 0, "token in the loss", ""),
    (faults.WrongLabels, runs.Loop, 0, "gradient of output", "lm_head"),
    (faults.SkippedMicroBatch, runs.Loop, 1, "token in the loss", ""),
    (faults.Frozen, runs.Loop, 0, "gradient", f"{ONE_LAYER}.self_attn.q_proj"),
    (faults.Detached, runs.Loop, 0, "gradient of output", f"{ONE_LAYER}.post_attention_layernorm"),
    (faults.OtherRate, runs.Loop, 0, "optimizer setting", "model.layers.0.self_attn.q_norm"),
    (faults.DecayOnNorms, runs.Loop, 0, "optimizer setting", "model.layers.0.self_attn.q_norm"),
    (faults.CoupledDecay, runs.Loop, 0, "parameter", "model.embed_tokens"),
    (
        faults.LoraScale,
        runs.Lora,
        0,
        "gradient of output",
        f"base_model.model.{ONE_LAYER}.mlp.down_proj.lora_B.default",
    ),
    (faults.LostMoments, runs.Loop, 1, "parameter", "model.embed_tokens"),
    (faults.OtherGradientMask, runs.Child, 0, "optimizer setting", "model.embed_tokens"),
    (faults.StaleGradientMask, runs.Child, 1, "parameter", "model.embed_tokens"),
    (faults.KeptGradients, runs.Loop, 1, "gradient", "model.embed_tokens"),
]
FAULTS_RANKS = [
    (faults.DropoutOnOneRank, runs.Loop, 0, "output", f"{ONE_LAYER}.self_attn.o_proj"),
    (faults.NotSynchronised, runs.Loop, 0, "parameter at the start", f"{ONE_LAYER}.mlp.up_proj"),
    (faults.LocalNorm, runs.Clipped, 0, "gradient", "model.embed_tokens"),
    (faults.NoAllReduce, runs.Loop, 0, "gradient", f"{ONE_LAYER}.mlp.down_proj"),
    (faults.SumForMean, runs.Loop, 0, "gradient", "model.embed_tokens"),
    (faults.OwnTokens, runs.Loop, 0, "gradient of output", "lm_head"),
    (faults.NoSync, runs.Loop, 0, "gradient", "model.embed_tokens"),
    (faults.EarlyOptimizer, runs.Loop, 0, "optimizer setting", "model.embed_tokens"),
    (faults.PartialSums, runs.Loop, 0, "output", f"{ONE_LAYER}.mlp.down_proj"),
    (faults.OtherData, runs.Loop, 0, "token in the loss", ""),
]
MESHES = {faults.PartialSums: "1,1,2"}
NOISY = ["runs.Fsdp,", "faults.NotSynchronised,"]  # references on ranks


def named(case) -> str:
    return case.__name__ if isinstance(case, type) else ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("divergence")


@pytest.fixture(scope="module")
def references(folder):
    for loop in REFERENCES:
        loop().run(folder / loop.__name__)
        loop().run(folder / loop.__name__, rounding=True)
    for loop, *_ in HEALTHY_ALONE + FAULTS_ALONE:
        loop().run(folder / loop.__name__)
    return folder


@pytest.fixture(scope="module")
def ranks(references):
    """All runs on two ranks, in one launch."""
    healthy = [f"runs.{loop.__name__},{mesh}" for loop, _, mesh in HEALTHY_RANKS]
    faulty = [f"faults.{loop.__name__},{MESHES.get(loop, '')}" for loop, *_ in FAULTS_RANKS]
    run_program(RANKS, references, *healthy, *faulty, *(f"+{where}" for where in NOISY))
    return references


def found(folder, loop, reference):
    report = compare(folder / reference.__name__, folder / loop.__name__)
    first = report.first
    return report, first and (first.step, first.kind, first.module)


@pytest.mark.parametrize(("loop", "reference"), HEALTHY_ALONE, ids=named)
def test_another_way_to_compute_the_same_is_not_accused(references, loop, reference):
    report, first = found(references, loop, reference)
    assert first is None, report
    assert all(phase.compared for phase in report.phases)


@pytest.mark.parametrize(("loop", "reference", "mesh"), HEALTHY_RANKS, ids=named)
def test_two_ranks_that_compute_the_same_are_not_accused(ranks, loop, reference, mesh):
    report, first = found(ranks, loop, reference)
    assert first is None, report
    assert all(phase.compared for phase in report.phases)


@pytest.mark.parametrize(("loop", "reference", "step", "kind", "module"), FAULTS_ALONE, ids=named)
def test_a_fault_is_found_at_its_step_and_module(references, loop, reference, step, kind, module):
    report, first = found(references, loop, reference)
    assert first == (step, kind, module), report


@pytest.mark.parametrize(("loop", "reference", "step", "kind", "module"), FAULTS_RANKS, ids=named)
def test_a_fault_on_two_ranks_is_found_at_its_step_and_module(ranks, loop, reference, step, kind, module):
    report, first = found(ranks, loop, reference)
    assert first == (step, kind, module), report


def test_there_are_twenty_faults_and_ten_healthy_pairs_at_least():
    assert len(FAULTS_ALONE + FAULTS_RANKS) >= 20 and len(HEALTHY_ALONE + HEALTHY_RANKS) >= 10


@pytest.mark.parametrize(
    ("loop", "reference", "said"),
    [
        (faults.DropoutOnOneRank, runs.Loop, "on rank 1 only"),
        (faults.NotSynchronised, runs.Loop, "on rank 1 only"),
        (faults.SumForMean, runs.Loop, "B is A times 2"),
        (faults.SumForMean, runs.Loop, "a sum over ranks or micro-batches for a mean"),
        (faults.LocalNorm, runs.Clipped, "clipping by the norm of its shards"),
        (faults.OwnTokens, runs.Loop, "its tokens in place of those of all"),
        (faults.LoraScale, runs.Lora, "B is A times 0.5"),
        (faults.EarlyOptimizer, runs.Loop, "built before sharding"),
        (faults.NoSync, runs.Loop, "B has none"),
    ],
    ids=named,
)
def test_the_report_says_which_rank_and_what_may_be_the_cause(ranks, loop, reference, said):
    assert said in str(found(ranks, loop, reference)[0])


@pytest.mark.parametrize(
    ("margin", "cases"),
    [(MARGIN / 5, HEALTHY_ALONE + [case[:2] for case in HEALTHY_RANKS]), (10 * MARGIN, FAULTS_ALONE + FAULTS_RANKS)],
    ids=["healthy", "faults"],
)
def test_the_margin_is_far_from_both_sides(ranks, monkeypatch, margin, cases):
    monkeypatch.setattr(comparison, "MARGIN", margin)
    for loop, reference, *wanted in cases:
        report, first = found(ranks, loop, reference)
        assert first == (tuple(wanted) or None), (loop, report)


def test_without_a_margin_rounding_is_accused(ranks, monkeypatch):
    monkeypatch.setattr(comparison, "MARGIN", 0.01)
    assert found(ranks, runs.Parallel, runs.Loop)[1]


def test_a_sharded_run_may_be_the_reference(ranks):
    assert found(ranks, runs.Loop, runs.Fsdp)[1] is None
    assert found(ranks, faults.AttentionScale, runs.Fsdp)[1] == (0, "output", f"{ONE_LAYER}.self_attn.o_proj")


def test_ranks_of_the_reference_may_contradict_each_other(ranks):
    report, first = found(ranks, runs.Loop, faults.NotSynchronised)
    assert first == (0, "parameter at the start", f"{ONE_LAYER}.mlp.up_proj")
    assert "the ranks of A contradict each other" in str(report)
