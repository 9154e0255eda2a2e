"""Every method on four designs: what trains, what it starts as, what it refuses; the optimizers that go with it."""

import copy

import pytest
import torch
from peft import PeftModel

from ftkit.adapters import METHODS, attach, make_optimizer, merge_and_verify
from ftkit.models import load_base
from ftkit.parameters import check_decay_groups, count_parameters

from .models import CONFIGS, batch, model, moe, train

# What a library or a model cannot do, by method and model.
CANNOT = {
    ("llama-adapter", "qwen3"): "does not support qwen3",
    ("llama-adapter", "gemma3"): "does not support gemma3_text",
    **{("bitfit", kind): "has none" for kind in ("mistral", "qwen3", "gemma3")},
}
PEFTS = ("lora", "dora", "lora+", "prefix", "llama-adapter")


@pytest.mark.filterwarnings("ignore:lm_head.weight is tied")
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_what_it_should_and_nothing_else(method, kind):
    base = model(kind)
    if said := CANNOT.get((method, kind)):
        with pytest.raises(ValueError, match=said):
            attach(base, method)
        assert all(p.requires_grad for p in base.parameters())  # as it was
        return
    tuned = attach(base, method)
    assert isinstance(tuned, PeftModel) == (method in PEFTS)
    before = {name: p.detach().clone() for name, p in tuned.named_parameters()}
    losses = train(tuned.train(), make_optimizer(tuned, method, lr=1e-2))
    assert losses[-1] < losses[0]
    moved = {name for name, p in tuned.named_parameters() if not torch.equal(p, before[name])}
    frozen = {name for name, p in tuned.named_parameters() if not p.requires_grad}
    assert moved and not moved & frozen
    assert bool(frozen) == (method not in ("full", "child-tuning"))


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("method", ["lora", "dora", "llama-adapter"])
def test_an_adapter_that_has_not_trained_changes_nothing(method, kind):
    if (method, kind) in CANNOT:
        pytest.skip(CANNOT[method, kind])
    base = model(kind).eval()
    with torch.no_grad():
        before = base(**batch()).logits
        after = attach(base, method).eval()(**batch()).logits
    torch.testing.assert_close(before, after, rtol=0, atol=1e-5)


def test_lora_is_as_large_as_its_formula():
    base = model()
    sides = [m.weight.shape for n, m in base.model.named_modules() if isinstance(m, torch.nn.Linear)]
    tuned = attach(base, "lora", r=4)
    assert count_parameters(tuned).trainable == sum(4 * (rows + columns) for rows, columns in sides)


def test_neftune_is_uniform_of_the_papers_size_and_in_training_only():
    tuned = attach(model(), "lora", neftune_alpha=5.0)
    embedding = tuned.get_input_embeddings()
    ids = batch()["input_ids"]
    noise = embedding.train()(ids) - embedding.eval()(ids)
    bound = 5.0 / (ids.shape[1] * 32) ** 0.5  # alpha / sqrt(L D)
    assert noise.abs().max() <= bound + 1e-6
    assert noise.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)  # of a uniform, not of a Gaussian
    assert torch.equal(embedding(ids), embedding(ids))


def test_lora_plus_has_two_rates_and_does_not_forget_the_embedding():
    tuned = attach(model(), "lora+", modules_to_save=["embed_tokens"])
    names = {id(p): name for name, p in tuned.named_parameters()}
    rates = {
        names[id(p)]: group["lr"]
        for group in make_optimizer(tuned, "lora+", lr=1e-3, loraplus_lr_ratio=4).param_groups
        for p in group["params"]
    }
    assert rates.keys() == {name for name, p in tuned.named_parameters() if p.requires_grad}
    for name, rate in rates.items():
        assert rate == pytest.approx(4e-3 if "lora_B" in name else 1e-3), name


def test_lora_plus_takes_the_paper_s_groups():
    """B alone learns faster; norm weights and DoRA's magnitudes do not decay."""
    tuned = attach(model(), "lora+", use_dora=True, modules_to_save=["input_layernorm", "lm_head"])
    optimizer = make_optimizer(tuned, "lora+", lr=1e-3, loraplus_lr_ratio=4, weight_decay=0.1)
    check_decay_groups(tuned, optimizer.param_groups)
    names = {id(p): name for name, p in tuned.named_parameters()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert group["lr"] == pytest.approx(4e-3 if "lora_B" in names[id(p)] else 1e-3), names[id(p)]
            assert group["weight_decay"] == (0.1 if p.ndim > 1 else 0), names[id(p)]


def test_all_linear_takes_layers_below_the_rank_and_leaves_what_mamba_s_kernels_bypass():
    gated = attach(moe("qwen2moe"), "lora", r=8)  # a gate of 1x32
    gates = [n for n, p in gated.named_parameters() if "shared_expert_gate.lora_B" in n]
    assert gates and train(gated, make_optimizer(gated, "lora", lr=1e-2))
    merge_and_verify(gated, batch())
    mamba = attach(moe("jamba"), "lora", r=8)
    adapted = {n.split(".lora_")[0].rpartition(".")[2] for n, p in mamba.named_parameters() if p.requires_grad}
    assert "in_proj" in adapted and "dt_proj" in adapted and "out_proj" not in adapted


def test_child_tuning_moves_its_share_of_the_entries():
    base = model()
    before = copy.deepcopy(base.state_dict())
    train(base, make_optimizer(attach(base, "child-tuning"), "child-tuning", lr=1e-3, reserve_p=0.3), steps=1)
    moved = [(p != before[n]).float().mean().item() for n, p in base.state_dict().items() if p.ndim == 2]
    assert sum(moved) / len(moved) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("lorra", {}, "did you mean lora"),
        ("bitfit", {"r": 4}, "has no option 'r'; its options: none"),
        ("dora", {"use_dora": False}, "has no option 'use_dora'"),
        ("lora", {"target_modules": ["q_prj"]}, "near names: q_proj"),
        ("lora", {"target_modules": ["q_proj", "gate"]}, "'gate' of target_modules matches no module"),
        ("lora", {"target_modules": r".*\.q_projj"}, "near names: q_proj"),
        ("lora", {"modules_to_save": ["embed"]}, "'embed' of modules_to_save matches no module"),
        (
            "lora",
            {"target_modules": ["input_layernorm"]},
            "input_layernorm is a LlamaRMSNorm, and LoRA needs a matrix",
        ),
        ("lora", {"target_modules": ["q_proj", "mlp"]}, "mlp is a LlamaMLP"),
        ("lora", {"r": 17, "target_modules": ["k_proj"]}, "k_proj is 16×32: its rank is 16 at most"),
        ("lora", {"trainable_token_indices": [64]}, "has 64, and the model embeds 64 tokens"),
        ("lora", {"trainable_token_indices": [3], "modules_to_save": ["embed_tokens"]}, "leave one of the two"),
        ("lora", {"trainable_token_indices": [3], "target_modules": ["embed_tokens"]}, "leave one of the two"),
        ("lora", {"r": 0}, "a rank is 1 or more"),
        ("prefix", {"num_virtual_tokens": 0}, "give 1 or more"),
        ("llama-adapter", {"adapter_len": 0}, "give 1 or more"),
        ("llama-adapter", {"adapter_layers": 4}, "the model has 3"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_changes(method, options, said):
    base = model()
    modules = [type(m) for m in base.modules()]
    with pytest.raises(ValueError, match=said):
        attach(base, method, **options)
    assert [type(m) for m in base.modules()] == modules and all(p.requires_grad for p in base.parameters())


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.1}], ids=str)
def test_what_peft_cannot_do_with_experts_is_refused_before_the_model_changes(options):
    base = moe("mixtral")
    with pytest.raises(ValueError, match=rf"{next(iter(options))} does not go with LoRA on the experts \(down_proj"):
        attach(base, "lora", **options)
    assert not any("lora" in name for name, _ in base.named_parameters())
    attach(base, "lora", target_modules=["q_proj"], **options)


def test_a_second_adapter_is_refused():
    with pytest.raises(ValueError, match="has an adapter already"):
        attach(attach(model(), "lora"), "dora")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_pocket_base(method):
    tuned = attach(load_base()[0], method)
    assert 0 < count_parameters(tuned).trainable <= 1_022_080
