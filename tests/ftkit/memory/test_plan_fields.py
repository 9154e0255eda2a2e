"""Adapters, bases in 4 bits, moments in 8 bits, packing and selective checkpointing: measured, and by hand."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from ftcourse.measured_memory import measure_memory
from ftkit._compat import fake_tensors, fill_from_meta
from ftkit.finetune.config import Config, validate
from ftkit.finetune.memory import plan_of as plan_of_run
from ftkit.memory import MemoryPlan, estimate_memory, published_meta_model, table
from ftkit.memory.__main__ import main, make_parser, plan_of
from ftkit.memory.estimate import persistent_bytes
from ftkit.memory.step import apply_method
from ftkit.memory.trace import copy_to_meta
from ftkit.memory.tracker import MemoryTracker

from .test_estimate import SMALL, llama

pytestmark = pytest.mark.thorough

HALF = {"param_dtype": "bfloat16", "compute_dtype": "bfloat16"}
CHANGES = {
    "packing": {"packing": True},
    "packing, chunked loss": {"packing": True, "loss_chunk": 16},
    "every second layer recomputed": {"activation_checkpointing": True, "checkpoint_policy": "alternate"},
    "matrix products saved": {"activation_checkpointing": True, "checkpoint_policy": "save-matmuls"},
    "dropout": {"method": "lora", "options": {"lora_dropout": 0.1}},
    "DoRA": {"method": "lora", "options": {"use_dora": True}, **HALF},
    "head trained": {"method": "lora", "options": {"modules_to_save": ["lm_head"]}, **HALF},
    "one target": {"method": "lora", "options": {"target_modules": r".*\.q_proj"}},
    "4 bits": {"method": "lora", "base_dtype": "nf4", **HALF},
    "4 bits, recomputed": {"method": "lora", "base_dtype": "nf4", "activation_checkpointing": True, **HALF},
}
PLAIN = {  # the same plan without what is tested
    "every second layer recomputed": {"checkpoint_policy": "all"},
    "matrix products saved": {"checkpoint_policy": "all"},
    "packing": {"packing": False},
    "packing, chunked loss": {"packing": False},
    **{name: {"options": {}} for name in ("dropout", "DoRA", "head trained", "one target")},
    **{name: {"base_dtype": ""} for name in ("4 bits", "4 bits, recomputed")},
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_plan_says_is_what_a_step_uses(name):
    plan = replace(SMALL, **CHANGES[name])
    found, measured = estimate_memory(llama(), plan), measure_memory(llama(), plan)
    for kind in ("weights", "gradients", "optimizer"):
        assert getattr(found, kind) == getattr(measured, kind)
    assert found.peak == pytest.approx(measured.peak, rel=0.0006)  # AdamW's counters, of models this small
    assert abs(estimate_memory(llama(), replace(plan, **PLAIN[name])).peak / measured.peak - 1) > 0.0015


def test_a_4_bit_base_takes_4_127_bits_a_weight():
    """The paper's number: 4 bits, and 0.127 of constants after double quantisation."""
    model = published_meta_model("llama-2-7b")
    linear = sum(p.numel() for name, p in model.named_parameters() if "_proj" in name)
    others = sum(p.numel() for name, p in model.named_parameters() if "_proj" not in name)
    plan = MemoryPlan(method="lora", base_dtype="nf4", **HALF)
    adapted = apply_method(copy_to_meta(model), plan)
    adapters = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    states = persistent_bytes(adapted, plan)
    bits = (states.weights - 2 * others - 4 * adapters) * 8 / linear
    assert bits == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), rel=1e-4) and round(bits, 3) == 4.127
    assert states.optimizer == 8 * adapters


def test_each_use_of_a_4_bit_matrix_dequantises_it():
    """In the dtype of the computation, beside its constants in float32: forward and again backward."""
    sizes = {"hidden_size": 256, "intermediate_size": 4096, "num_attention_heads": 4, "num_key_value_heads": 4}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, vocab_size=64))
    plan = MemoryPlan(method="lora", base_dtype="nf4", **HALF)
    layer = apply_method(model, plan).get_base_model().model.layers[0].mlp.up_proj.base_layer
    with fake_tensors(), MemoryTracker() as live:
        fill_from_meta(layer)
        x = torch.zeros(1, 256, dtype=torch.bfloat16, requires_grad=True)
        before = live.now
        live.begin("forward")
        y = layer(x).sum()
        live.begin("backward")
        y.backward()
    dequantised = 2 * 256 * 4096 + 4 * 256 * 4096 / 64
    for phase in ("forward", "backward"):
        assert live.peaks[phase] - before == pytest.approx(dequantised, rel=0.02)
    assert live.now - before < 0.01 * dequantised


def test_what_stays_unquantised():
    model = apply_method(llama(), MemoryPlan(method="lora", base_dtype="nf4", options={"modules_to_save": ["o_proj"]}))
    packed = {name for name, p in model.named_parameters() if p.dtype == torch.uint8}
    assert packed and not [name for name in packed if "lora_" in name or "modules_to_save" in name or "head" in name]
    assert {name.split(".")[-1] for name in packed} == {"weight", "constants"}
    assert {type(model.get_base_model().lm_head), type(model.get_base_model().model.embed_tokens)} == {
        nn.Linear,
        nn.Embedding,
    }


def test_a_model_without_linear_layers_has_nothing_to_quantise():
    gpt = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=90, n_positions=32))
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel has no nn\.Linear .* leave base_dtype"):
        estimate_memory(gpt, replace(SMALL, method="lora", base_dtype="nf4"))


def test_adapters_on_meta_draw_no_numbers():
    """They did on the CPU first, which took most of an estimate's time for 70 billion parameters."""
    base, plan = llama(), replace(SMALL, method="lora")
    before = torch.get_rng_state()
    model = apply_method(copy_to_meta(base), plan)
    assert all(p.is_meta for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    apply_method(base, plan)
    assert not torch.equal(torch.get_rng_state(), before)


def test_moments_in_8_bits_by_hand():
    model = llama()
    large = [p.numel() for p in model.parameters() if p.numel() >= 4096]
    small = [p.numel() for p in model.parameters() if p.numel() < 4096]
    assert large and small
    plan = replace(SMALL, moment_dtype="8bit")
    states = persistent_bytes(model, plan)
    assert states.optimizer == 2 * (sum(n + 4 * math.ceil(n / 256) for n in large) + 4 * sum(small))
    assert states.transient == 0  # the kernel steps in place
    assert persistent_bytes(model, SMALL).optimizer == 8 * sum(large + small)
    of_7b = estimate_memory(published_meta_model("llama-2-7b"), replace(plan, max_length=16))
    assert of_7b.optimizer / sum(p.numel() for p in published_meta_model("llama-2-7b").parameters()) == pytest.approx(
        2 * (1 + 4 / 256), rel=1e-3
    )


def test_selective_checkpointing_lies_between_all_and_nothing():
    def forward(**changes) -> int:
        return estimate_memory(llama(12), replace(SMALL, max_length=48, **changes)).phases["forward"]

    whole, alternate, saved = (
        forward(activation_checkpointing=True, checkpoint_policy=policy)
        for policy in ("all", "alternate", "save-matmuls")
    )
    assert whole < alternate < forward() and whole < saved < forward()
    # Half of the layers save what they save without checkpointing.
    assert (alternate - whole) / (forward() - whole) == pytest.approx(0.5, abs=0.06)


def test_alternating_policies_are_extrapolated_to_the_byte():
    plan = replace(SMALL, activation_checkpointing=True, checkpoint_policy="alternate")
    assert estimate_memory(llama(15), plan).peak == estimate_memory(llama(15), plan, every_layer=True).peak


def test_flags_become_the_plan(capsys, tmp_path):
    words = ["--method", "lora", "--target_modules", r".*\.q_proj", "--lora_dropout", "0.1", "--dora", "--packing"]
    words += ["--modules_to_save", "embed_tokens,lm_head", "--moment_dtype", "8bit"]
    plan = plan_of(make_parser().parse_args(words))
    assert plan.options == {
        "target_modules": r".*\.q_proj",
        "lora_dropout": 0.1,
        "use_dora": True,
        "modules_to_save": ["embed_tokens", "lm_head"],
    }
    assert plan.packing and plan.moment_dtype == "8bit"
    llama().config.save_pretrained(tmp_path)
    flags = [str(tmp_path), "--max_length", "8", "--micro_batch_size", "1", "--method", "lora", "--json"]
    peaks = []
    for more in ([], ["--base_dtype", "nf4"], ["--target_modules", r".*\.q_proj"]):
        assert main([*flags, *more]) == 0
        peaks.append(json.loads(capsys.readouterr().out)["weights"])
    assert peaks[1] < peaks[2] < peaks[0]


@pytest.mark.parametrize("optimizer", ["adamw", "child-tuning"])
def test_the_command_assumes_the_kernel_that_the_program_takes(tmp_path, optimizer):
    run = validate(Config(output=str(tmp_path / "run"), optimizer=optimizer))
    told = plan_of(make_parser().parse_args(["--optimizer", optimizer]))
    assert told.kernel == plan_of_run(run, 8, 512, 1).kernel
    assert plan_of(make_parser().parse_args(["--kernel", "foreach"])).kernel == "foreach"


@pytest.mark.parametrize(
    ("said", "flags"),
    [
        ("--lora_r and --dora is for LoRA, and --method is full", ["--lora_r", "4", "--dora"]),
        ("give method 'lora'", ["--base_dtype", "nf4"]),
        ("needs activation_checkpointing", ["--checkpoint_policy", "alternate"]),
        ("DoRA on a base in 4 bits", ["--method", "lora", "--base_dtype", "nf4", "--dora"]),
        ("whole on each rank", ["--method", "lora", "--base_dtype", "nf4", "--mesh", "1,2,1"]),
        ("no module", ["--method", "lora", "--target_modules", "nothing_like_it"]),
        ("child-tuning keeps its moments in float32", ["--moment_dtype", "8bit", "--optimizer", "child-tuning"]),
    ],
)
def test_flags_that_do_not_go_together(capsys, said, flags):
    with pytest.raises(SystemExit):
        main(flags)
    assert said in capsys.readouterr().err


def test_a_tensor_parallel_estimate_says_what_it_leaves_out():
    split = estimate_memory(llama(), replace(SMALL, mesh=(1, 1, 2)))
    assert "without sequence parallelism" in table(split)
    assert "sequence parallelism" not in table(estimate_memory(llama(), SMALL))
