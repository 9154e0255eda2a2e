"""A merge is accepted when it is right, in both precisions, and refused when any part of it is wrong."""

import pytest
import torch
from peft.tuners.lora import Linear

from ftkit.adapters import MergeError, attach, make_optimizer, merge_and_verify

from .models import CONFIGS, MOE_CONFIGS, batch, model, moe, train

pytestmark = pytest.mark.thorough


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


def test_a_forward_method_that_a_trainer_replaced_does_not_void_the_check(monkeypatch):
    tuned = trained()
    base = tuned.get_base_model()
    original = base.forward
    base.forward = lambda *args, **kwargs: original(*args, **kwargs)  # copied, it calls the model it was copied from
    merged, report = merge_and_verify(tuned, batch())
    assert report.change > 0 and "forward" not in vars(merged)
    right = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: 0.9 * right(self, adapter))
    with pytest.raises(MergeError, match="do not use the merged model"):
        merge_and_verify(tuned, batch())


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


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, torch.float32) for kind in MOE_CONFIGS), ("qwen3moe", torch.bfloat16), ("gptoss", torch.bfloat16)],
    ids=str,
)
def test_a_mixture_of_experts_merges_and_a_wrong_scale_is_refused(monkeypatch, kind, dtype):
    """In bfloat16 rounding alone sends tokens to other experts, which changes logits by more than the wrong scale."""
    tuned = attach(moe(kind, dtype), "lora")
    train(tuned, make_optimizer(tuned, "lora", lr=1e-2))
    assert merge_and_verify(tuned, batch())[0].dtype == dtype
    right = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: 0.9 * right(self, adapter))
    with pytest.raises(MergeError, match="do not use the merged model"):
        merge_and_verify(tuned, batch())


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
        {"target_modules": ["q_proj", "lm_head"], "use_rslora": True},
        {"modules_to_save": ["lm_head", "norm"]},
        {"trainable_token_indices": batch()["input_ids"][0, :2].tolist(), "lora_dropout": 0.1},
    ],
    ids=str,
)
def test_embeddings_heads_and_tokens_merge_into_the_base_s_dtype(options):
    tuned = attach(model(dtype=torch.bfloat16), "lora", **options)
    before = dict(model(dtype=torch.bfloat16).state_dict())
    train(tuned, make_optimizer(tuned, "lora", lr=1e-2))
    merged = merge_and_verify(tuned, batch())[0].state_dict()
    assert merged.keys() == before.keys() and {t.dtype for t in merged.values()} == {torch.bfloat16}
    part = "lm_head" if "lm_head" in str(options) else "embed_tokens"
    assert not torch.equal(merged[name := next(n for n in before if part in n)], before[name])


def test_lora_on_a_tied_embedding_cannot_be_merged():
    tuned = attach(model("qwen3"), "lora", target_modules=["q_proj", "embed_tokens"])
    train(tuned, make_optimizer(tuned, "lora", lr=1e-2))
    with pytest.raises(MergeError):
        merge_and_verify(tuned, batch())


def test_a_merged_model_has_no_noise_on_its_embeddings():
    tuned = attach(model(), "lora", neftune_alpha=5.0)
    train(tuned, make_optimizer(tuned, "lora", lr=1e-2))
    merged, _ = merge_and_verify(tuned, batch())
    rows = batch()  # once, because it seeds the generator
    one, two = (merged.train()(**rows).logits for _ in range(2))
    assert torch.equal(one, two)
    one, two = (tuned.train()(**rows).logits for _ in range(2))
    assert not torch.equal(one, two)  # and the adapter's own model keeps it


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
