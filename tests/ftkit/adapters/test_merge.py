"""A merge is accepted when it is right, in both precisions, and refused when any part of it is wrong."""

import pytest
import torch
from peft.tuners.lora import Linear

from ftkit.adapters import MergeError, attach, make_optimizer, merge_and_verify

from .models import CONFIGS, batch, model, train


def trained(method="lora", kind="llama", dtype=torch.float32):
    tuned = attach(model(kind, dtype), method)
    train(tuned, make_optimizer(tuned, method, lr=1e-2))
    return tuned


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_merge_is_verified(kind, method, dtype):
    tuned = trained(method, kind, dtype)
    before = {name: (p.dtype, p.detach().clone()) for name, p in tuned.named_parameters()}
    merged, report = merge_and_verify(tuned, batch())
    assert report.positions == int(batch()["attention_mask"].sum())
    assert 0 < report.logit_error < (1e-5 if dtype == torch.float32 else 0.05)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    for name, p in tuned.named_parameters():  # precision and values, to the bit
        assert p.dtype == before[name][0] and torch.equal(p, before[name][1]), name
    assert "greedy tokens differ" in str(report)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("factor", [0.0, 0.9, -1.0])
def test_a_wrong_scale_is_refused(monkeypatch, dtype, factor):
    right = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: factor * right(self, adapter))
    with pytest.raises(MergeError, match="do not use the merged model"):
        merge_and_verify(trained(dtype=dtype), batch())


def test_one_layer_left_out_is_refused(monkeypatch):
    right = Linear.get_delta_weight
    tuned = trained()
    left_out = tuned.base_model.model.model.layers[1].mlp.up_proj
    shape = tuple(left_out.weight.shape)
    monkeypatch.setattr(
        Linear,
        "get_delta_weight",
        lambda self, adapter: right(self, adapter) * (tuple(self.weight.shape) != shape),
    )
    with pytest.raises(MergeError):
        merge_and_verify(tuned, batch())


def test_nan_is_refused():
    tuned = trained()
    tuned.base_model.model.model.layers[0].mlp.up_proj.lora_B["default"].weight.data[0, 0] = float("nan")
    with pytest.raises((MergeError, ValueError)):
        merge_and_verify(tuned, batch())


def test_what_cannot_be_merged_says_so_and_the_mode_comes_back():
    with pytest.raises(ValueError, match="PREFIX_TUNING adds inputs"):
        merge_and_verify(attach(model(), "prefix"), batch())
    with pytest.raises(ValueError, match=r"in torch\.float64: load it in float32"):
        merge_and_verify(attach(model(dtype=torch.float64), "lora"), batch())
    with pytest.raises(TypeError, match="has no adapter"):
        merge_and_verify(model(), batch())
    tuned = trained().train()
    merge_and_verify(tuned, batch())
    assert tuned.training
