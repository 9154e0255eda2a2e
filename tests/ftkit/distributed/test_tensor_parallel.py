"""Tensor parallelism, alone and under FSDP2, against a single process: weights, losses, gradients, norm, one step."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, Qwen3MoeConfig

from ftkit._compat import fake_ranks
from ftkit.distributed import tensor_parallel
from ftkit.distributed.grad_clip import clip_grad_norm_
from ftkit.freezing import freeze
from ftkit.models import resolve_model
from tests.programs import run_program
from tests.tiny import foreign_model, save_foreign

from .loading_ranks import compare, step

# float32 keeps seven digits; sums over tokens, features and ranks in another order lose two or three of them.
TOLERANCE = 1e-4


def on_ranks(ranks: int, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("tensor_parallel")
    save_foreign(folder / "qwen")
    shutil.copytree(resolve_model(), folder / "llama")
    program = Path(__file__).with_name("loading_ranks.py")
    run_program(program, folder, ranks)
    return json.loads((folder / f"{ranks}.json").read_text())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return on_ranks(2, tmp_path_factory)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return on_ranks(4, tmp_path_factory)


def wrong(result: dict) -> list[str]:
    return [key for key in ("losses", "norm", "gradients", "clipped", "weights") if not result[key] < TOLERANCE]


@pytest.mark.parametrize("model", ["qwen", "llama", "qwen in FSDP"])
def test_two_ranks_share_each_matrix(two, model):
    result = two[model]
    assert result["loaded"] and result["buffers"] and not wrong(result), result
    assert result["tied"] == (model != "llama")
    assert max(result["held"]) < 0.52 * result["total"]


@pytest.mark.parametrize("model", ["qwen", "llama"])
def test_tensor_parallelism_under_fsdp(four, model):
    result = four[model]
    assert result["loaded"] and result["buffers"] and not wrong(result), result
    assert result["tied"] == (model == "qwen")
    assert max(result["held"]) < 0.26 * result["total"]
    assert four["from rank 0"]


def test_a_row_parallel_layer_without_its_sum_is_noticed(two):
    assert {"losses", "gradients", "norm"} <= set(wrong(two["without its sum"]))


def test_gradients_of_norms_of_heads_that_are_not_summed_are_noticed(two):
    """Losses stay right: only a comparison of gradients sees it."""
    result = two["norms left alone"]
    assert result["losses"] < TOLERANCE and "gradients" in wrong(result)


def test_halved_gradients_are_noticed():
    expected = step(foreign_model(torch.float32))
    assert not wrong(compare(step(foreign_model(torch.float32)), expected))
    model = foreign_model(torch.float32)
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient / 2)
    assert {"gradients", "norm"} <= set(wrong(compare(step(model), expected)))


def test_what_the_clip_of_ours_is_for(two, four):
    assert two["partial"] and all("q_norm" in name or "k_norm" in name for name in two["partial"])
    assert "mesh" in four["stock clip"] or "mixed torch.Tensor and DTensor" in four["stock clip"]


@pytest.mark.parametrize("max_norm", [0.01, 1e6])
def test_clip_equals_torchs_in_a_single_process(max_norm):
    ours, theirs = foreign_model(torch.float32), foreign_model(torch.float32)
    for model in (ours, theirs):
        model(input_ids=torch.arange(8).view(1, 8)).logits.square().mean().backward()
        model.model.norm.weight.grad = None
    norm = clip_grad_norm_(ours.parameters(), max_norm)
    assert norm == pytest.approx(torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm).item())
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.grad is b.grad is None or torch.allclose(a.grad, b.grad, rtol=1e-5, atol=0)


def test_a_norm_that_is_no_number_passes_to_every_gradient():
    model = torch.nn.Linear(2, 2)
    model.weight.grad, model.bias.grad = torch.full((2, 2), float("nan")), torch.ones(2)
    assert clip_grad_norm_(model.parameters(), 1.0) != clip_grad_norm_(model.parameters(), 1.0)  # NaN
    assert model.bias.grad.isnan().all()


@pytest.mark.parametrize(
    ("change", "tp", "names"),
    [
        ({}, 3, r"8 \(attention heads\), 4 \(key-value heads\), 64 \(intermediate size\)"),
        ({}, 8, r"does not divide 4 \(key-value heads\) of this model: take tp from \[1, 2, 4\]"),
        ({"intermediate_size": 66}, 4, r"does not divide 66 \(intermediate size\)"),
    ],
)
def test_a_degree_that_does_not_divide_is_named_with_the_ones_that_do(change, tp, names):
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 64, **change}
    with pytest.raises(ValueError, match=names):
        tensor_parallel.validate_tp_degree(LlamaConfig(**sizes), tp)
    tensor_parallel.validate_tp_degree(LlamaConfig(**sizes), 2)


class TwoRanks(DeviceMesh):
    """As much of a mesh as is asked before anything is cut."""

    def __init__(self):
        pass

    def size(self, mesh_dim=None):
        return 2


def test_what_is_frozen_stays_frozen():
    """torch makes a norm of the heads a new parameter, which trains: it would be stepped in spite of --freeze."""
    model = foreign_model(torch.float32)
    freeze(model, r"layers\.0\.")
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with fake_ranks(2):
        tensor_parallel.apply_tensor_parallel(model, init_device_mesh("cpu", (2,)))
        assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert sum(not trains for trains in before.values()) == 11  # of the first layer, two of them norms of heads


def test_models_that_cannot_be_cut_say_so():
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3MoeForCausalLM

    with torch.device("meta"):
        gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16))
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 16, "num_experts": 2, "head_dim": 4}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 8}
        experts = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **heads, moe_intermediate_size=8))
        adapted = get_peft_model(foreign_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    if not gpt2.tp_plan:
        with pytest.raises(ValueError, match="GPT2LMHeadModel has no tensor-parallel plan"):
            tensor_parallel.apply_tensor_parallel(gpt2, TwoRanks())
    with pytest.raises(ValueError, match=r"plan has layers of kind .*: use dp_shard instead"):
        tensor_parallel.apply_tensor_parallel(experts, TwoRanks())
    with pytest.raises(ValueError, match="adapters have no tensor-parallel plan"):
        tensor_parallel.apply_tensor_parallel(adapted, TwoRanks())
