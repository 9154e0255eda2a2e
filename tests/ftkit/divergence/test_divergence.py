"""Planted faults are found at their step and module, and healthy pairs are not accused."""

import pytest

from ftkit.divergence import compare
from tests.programs import run_program

from . import faults, runs
from .ranks import __file__ as ranks_file

ONE_LAYER = f"model.layers.{faults.LAST}"
REFERENCES = [runs.Loop, runs.Clipped, runs.Lora, runs.Child, runs.Bfloat16]
# (the run, its reference)
HEALTHY_ALONE = [
    (runs.MicroBatches, runs.Loop),
    (runs.Checkpointed, runs.Loop),
    (runs.Packed, runs.Loop),
    (runs.Eager, runs.Loop),
    (runs.OneThread, runs.Loop),
    (runs.LossScale, runs.Loop),
    (runs.Resumed, runs.Loop),
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
    (faults.StaleAttentionMask, runs.Loop, 1, "tokens in the loss", ""),
    (faults.WrongPositions, runs.Loop, 0, "output", "model.rotary_emb"),
    (faults.Dropout, runs.Loop, 0, "output", f"{ONE_LAYER}.self_attn.o_proj"),
    (faults.LayerInBfloat16, runs.Loop, 0, "output", f"{ONE_LAYER}.mlp.gate_proj"),
    (faults.NormEpsilon, runs.Loop, 0, "output", f"{ONE_LAYER}.input_layernorm"),
    (faults.OtherClip, runs.Clipped, 0, "gradient", "model.embed_tokens"),
    (faults.ShiftedLabels, runs.Loop, 0, "tokens in the loss", ""),
    (faults.WrongLabels, runs.Loop, 0, "gradient of output", "lm_head"),
    (faults.SkippedMicroBatch, runs.Loop, 1, "tokens in the loss", ""),
    (faults.Frozen, runs.Loop, 0, "gradient", f"{ONE_LAYER}.self_attn.q_proj"),
    (faults.Detached, runs.Loop, 0, "gradient of output", f"{ONE_LAYER}.post_attention_layernorm"),
    (faults.OtherRate, runs.Loop, 0, "optimizer setting", "model.layers.0.self_attn.q_norm"),
    (faults.DecayOnNorms, runs.Loop, 0, "optimizer setting", "model.layers.0.self_attn.q_norm"),
    (faults.CoupledDecay, runs.Loop, 0, "parameter", "model.embed_tokens"),
    (faults.LoraScale, runs.Lora, 0, "gradient of output", f"base_model.model.{ONE_LAYER}.mlp.down_proj.lora_B.default"),
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
    (faults.ShardedLoraScale, runs.Lora, 0, "gradient of output", f"base_model.model.{ONE_LAYER}.mlp.down_proj.lora_B.default"),
    (faults.OwnTokens, runs.Loop, 0, "gradient of output", "lm_head"),
    (faults.NoSync, runs.Loop, 0, "gradient", "model.embed_tokens"),
    (faults.EarlyOptimizer, runs.Loop, 0, "optimizer setting", "model.embed_tokens"),
    (faults.PartialSums, runs.Loop, 0, "output", f"{ONE_LAYER}.mlp.down_proj"),
    (faults.OtherData, runs.Loop, 0, "tokens in the loss", ""),
]
MESHES = {faults.PartialSums: "1,1,2"}


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
    return folder


@pytest.fixture(scope="module")
def ranks(references):
    """All runs on two ranks, in one launch."""
    healthy = [f"runs.{loop.__name__},{mesh}" for loop, _, mesh in HEALTHY_RANKS]
    faulty = [f"faults.{loop.__name__},{MESHES.get(loop, '')}" for loop, *_ in FAULTS_RANKS]
    run_program(ranks_file, references, *healthy, *faulty)
    return references
