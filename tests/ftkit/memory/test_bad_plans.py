"""What cannot be estimated says so, by name and with the remedy; and the command."""

import json

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from ftcourse.measured_memory import measure_memory
from ftkit.memory import MemoryPlan, estimate_memory, published_meta_model
from ftkit.memory.__main__ import main

from .test_estimate import SMALL, llama


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("method is 'loar'", {"method": "loar"}),
        ("compute_dtype is 'fp8'", {"compute_dtype": "fp8"}),
        ("three whole numbers", {"mesh": (1, 2)}),
        ("three whole numbers", {"mesh": (1, 0, 1)}),
        ("moment_dtype is 'int4': give one of float32, bfloat16, float16, 8bit", {"moment_dtype": "int4"}),
        ("base_dtype is 'int3': give one of nf4", {"method": "lora", "base_dtype": "int3"}),
        ("checkpoint_policy is 'some': give one of all, alternate, save-matmuls", {"checkpoint_policy": "some"}),
        ("micro_batch_size is 0", {"micro_batch_size": 0}),
        ("give 2 or more", {"max_length": 1}),
        ("loss_chunk is -1", {"loss_chunk": -1}),
        ("reserve_p is 0", {"reserve_p": 0}),
        ("come together", {"method": "frozen"}),
        ("come together", {"freeze": "mlp"}),
        ("leave `freeze`", {"method": "lora", "freeze": "mlp"}),
        ("optimizer is 'sgd'", {"optimizer": "sgd"}),
        ("give a mesh such as 4,1,1", {"ddp": True, "mesh": (2, 2, 1)}),
        ("give a mesh such as 4,1,1", {"ddp": True, "mesh": (2, 1, 2)}),
        ("are LoRA's", {"options": {"r": 4}}),
        ("no master copy", {"method": "child-tuning", "master_copy": True}),
        ("no master copy", {"optimizer": "child-tuning", "master_copy": True}),
    ],
)
def test_plans(said, changes):
    with pytest.raises(ValueError, match=said):
        MemoryPlan(**changes)


def small(**changes) -> MemoryPlan:
    return MemoryPlan(**{"micro_batch_size": 1, "max_length": 8, **changes})


def test_plans_that_the_model_cannot_follow():
    with pytest.raises(ValueError, match=r"over 3 ranks does not divide 4 \(attention heads\)"):
        estimate_memory(llama(), small(mesh=(1, 1, 3)))
    with pytest.raises(ValueError, match=r"over 4 ranks does not divide 2 \(key-value heads\)"):
        estimate_memory(llama(), small(mesh=(1, 1, 4)))
    with pytest.raises(ValueError, match="LoRA and tensor parallelism"):
        estimate_memory(llama(), small(mesh=(1, 1, 2), method="lora"))
    with pytest.raises(ValueError, match="leaves nothing to train"):
        estimate_memory(llama(), small(method="frozen", freeze="."))
    with pytest.raises(ValueError, match=r"matches nothing|no parameter"):
        estimate_memory(llama(), small(method="frozen", freeze="nothing_like_it"))
    gpt = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=90, n_positions=32))
    with pytest.raises(ValueError, match="no tensor-parallel plan"):
        estimate_memory(gpt, small(mesh=(1, 1, 2)))
    with pytest.raises(ValueError, match="the model has 32 positions"):
        estimate_memory(gpt, small(max_length=33))


def test_measurements_that_cannot_be():
    with pytest.raises(ValueError, match="no optimizer here keeps them"):
        measure_memory(llama(), small(moment_dtype="bfloat16"))
    with pytest.raises(ValueError, match="the one given is None"):
        measure_memory(llama(), small(mesh=(1, 2, 1)))


def test_unknown_models(tmp_path):
    for name in ("./nowhere", str(tmp_path)):
        with pytest.raises(ValueError, match=r"no model .*llama-2-7b"):
            published_meta_model(name)


def test_command(capsys, tmp_path):
    llama().config.save_pretrained(tmp_path)  # a folder without weights
    flags = [str(tmp_path), "--max_length", "8", "--micro_batch_size", "1", "--mesh", "1,2,1"]
    assert main([*flags, "--gpu_gib", "1", "--bandwidth", "10"]) == 0
    said = capsys.readouterr().out
    assert "peak, in phase" in said and "fits into 1 GiB" in said and "s a step at 10 GB/s" in said
    assert main([*flags, "--json", "--gpu_gib", "0.0001"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights"] * 2 == found["optimizer"] and not found["fits"]
    assert sum(found["at_peak"].values()) == found["peak"]
    replicas = [*flags[:-1], "2,1,1", "--json"]
    peaks = []
    for more in ([], ["--ddp"]):
        assert main([*replicas, *more]) == 0
        peaks.append(json.loads(capsys.readouterr().out)["peak"])
    assert peaks[0] != peaks[1]  # fully_shard gathers a layer at a time, DDP keeps buckets


@pytest.mark.parametrize(
    ("said", "flags"),
    [
        ("three whole numbers", ["--mesh", "two"]),
        ("no model", ["./nowhere"]),
        ("over 3 ranks does not divide", ["--mesh", "1,1,3"]),
    ],
)
def test_command_refuses(capsys, said, flags):
    with pytest.raises(SystemExit) as end:
        main(flags)
    assert end.value.code == 2 and said in capsys.readouterr().err
    assert SMALL.world_size == 1
