"""Decay groups: every trainable parameter in exactly one, and only matrices decay."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM, Trainer

from ftkit import load_base
from ftkit.parameters import check_decay_groups, decay_groups, groups_by_name, groups_by_shape, norms_and_biases
from tests.tiny import foreign_model


def names(group: dict) -> set[str]:
    return {name for name, _ in group["params"]}


def test_only_matrices_decay():
    model = foreign_model()
    decaying, plain = decay_groups(model.named_parameters(), weight_decay=0.1)
    assert (decaying["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert not names(decaying) & names(plain)
    assert names(decaying) | names(plain) == dict(model.named_parameters()).keys()
    assert all(p.ndim == 2 for _, p in decaying["params"])
    assert {"model.norm.weight", "model.layers.0.self_attn.q_norm.weight"} <= names(plain)


def test_a_two_dimensional_norm_gain_is_caught_by_its_name():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.final_norm = nn.Linear(2, 2, bias=False)  # a gain stored as a matrix
            self.proj = nn.Linear(2, 2, bias=False)

    decaying, plain = decay_groups(Odd().named_parameters(), 0.1)
    assert names(decaying) == {"proj.weight"} and names(plain) == {"final_norm.weight"}


def test_pattern_and_frozen_parameters():
    model = foreign_model()
    model.model.layers.requires_grad_(False)
    (only,) = decay_groups(model.named_parameters(), 0.1, no_decay="embed_tokens")
    assert only["weight_decay"] == 0.0 and names(only) == {"model.embed_tokens.weight", "model.norm.weight"}
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="unfreeze"):
        decay_groups(model.named_parameters(), 0.1)


def test_mambas_decay_rates_and_marked_parameters_do_not_decay():
    model = MambaForCausalLM(MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=50, state_size=4))
    marked = model.backbone.layers[0].mixer.x_proj.weight
    mixer = "backbone.layers.0.mixer."
    assert f"{mixer}x_proj.weight" in decaying_names(decay_groups(model.named_parameters(), 0.1))
    marked._no_weight_decay = True
    groups = decay_groups(model.named_parameters(), 0.1)
    check_decay_groups(model, groups)
    assert {f"{mixer}A_log", f"{mixer}D", f"{mixer}x_proj.weight"} <= names(groups[1])
    assert f"{mixer}in_proj.weight" in names(groups[0])
    matrix = [(name, nn.Parameter(torch.zeros(2, 2))) for name in ("mixer.D", "mixer.A_log", "AD", "mixer.DA_log")]
    decaying, spared = decay_groups(matrix, 0.1)
    assert names(spared) == {"mixer.D", "mixer.A_log"} and names(decaying) == {"AD", "mixer.DA_log"}


SOURCE_PATTERN = r"bias|ln_.+weight|ln_.+bias"  # of a CLIP fine-tune, whose norms are called ln_1 and ln_post


def gpt2():
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=50, n_positions=32))


def pocket():
    return load_base()[0]


ARCHITECTURES = [foreign_model, gpt2, pocket]


def decaying_names(groups: list[dict]) -> set[str]:
    return {name for group in groups if group["weight_decay"] for name in names(group)}


@pytest.mark.parametrize("make", ARCHITECTURES)
@pytest.mark.parametrize("group", [decay_groups, groups_by_name, groups_by_shape])
def test_every_way_agrees_with_transformers_on_usual_models(make, group):
    model = make()
    groups = group(model.named_parameters(), 0.1)
    check_decay_groups(model, groups)
    # Trainer decides by module type and name, and lists a tied tensor under both its names.
    theirs = set(Trainer.get_decay_parameter_names(None, model)) & dict(model.named_parameters()).keys()
    assert decaying_names(groups) == theirs


@pytest.mark.parametrize("make", ARCHITECTURES)
def test_gains_and_biases_are_the_vectors_of_usual_models(make):
    model = make()
    assert set(norms_and_biases(model)) == {name for name, p in model.named_parameters() if p.ndim == 1}


def test_biases_of_attention_in_one_module_do_not_decay():
    attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
    biases = {"in_proj_bias", "out_proj.bias", "bias_k", "bias_v"}
    assert set(norms_and_biases(attention)) == biases
    for group in (decay_groups, groups_by_name):  # bias_k has three dimensions: the shape does not tell
        _, spared = group(attention.named_parameters(), 0.1)
        assert {name for name, _ in spared["params"]} == biases
    with pytest.raises(ValueError, match="bias_k, bias_v is a norm weight or a bias and decays"):
        check_decay_groups(attention, groups_by_shape(attention.named_parameters(), 0.1))


@pytest.mark.parametrize(
    ("name", "spared"),
    [
        ("model.norm.weight", True), ("norm1.weight", True), ("backbone.norm_f.weight", True),
        ("h.0.ln_1.weight", True),
        ("post_attention_layernorm.weight", True), ("layernorm_before.weight", True), ("fc.bias", True),
        ("normal_proj.weight", False), ("normalize.weight", False), ("unbiased.weight", False),
    ],
)  # fmt: skip
def test_what_a_matrix_of_that_name_is_taken_for(name, spared):
    groups = decay_groups([(name, nn.Parameter(torch.zeros(2, 2)))], 0.1)
    assert groups[0]["weight_decay"] == (0.0 if spared else 0.1)


def test_a_pattern_for_other_names_misses_the_gains_of_a_llama():
    model = gpt2()
    groups = groups_by_name(model.named_parameters(), 0.1, SOURCE_PATTERN)
    check_decay_groups(model, groups)  # gpt2's norms are called so
    llama = pocket()
    groups = groups_by_name(llama.named_parameters(), 0.1, SOURCE_PATTERN)
    assert "model.layers.0.input_layernorm.weight" in decaying_names(groups)
    with pytest.raises(ValueError, match=r"input_layernorm.*norm weight or a bias and decays"):
        check_decay_groups(llama, groups)


def test_the_check_turns_red():
    model = foreign_model()
    optimizer = torch.optim.AdamW(decay_groups(model.named_parameters(), 0.1))  # rewrites the groups it is given
    check_decay_groups(model, optimizer.param_groups)
    decaying, plain = decay_groups(model.named_parameters(), 0.1)
    check_decay_groups(model, [{"params": list(model.parameters()), "weight_decay": 0.0}])
    broken = {
        "in no group": [{**decaying, "params": decaying["params"][1:]}, plain],
        "in several groups": [decaying, plain, {"params": plain["params"][0][1], "weight_decay": 0.0}],
        "norm weight or a bias": [decaying, {**plain, "weight_decay": 0.1}],
        "not the model's": decay_groups(foreign_model().named_parameters(), 0.1),
    }
    for message, groups in broken.items():
        with pytest.raises(ValueError, match=message):
            check_decay_groups(model, groups)
    model.lm_head.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        check_decay_groups(model, [decaying, plain])


def test_shape_alone_misses_a_gain_stored_as_a_matrix():
    class MatrixNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2, 2))

    model = nn.Sequential(nn.Linear(2, 2), MatrixNorm())
    with pytest.raises(ValueError, match=r"1\.scale"):
        check_decay_groups(model, groups_by_shape(model.named_parameters(), 0.1))
    with pytest.raises(ValueError, match=r"1\.scale"):  # its name says nothing either: the pattern must be given
        check_decay_groups(model, decay_groups(model.named_parameters(), 0.1))
    check_decay_groups(model, decay_groups(model.named_parameters(), 0.1, no_decay=r"\.scale$"))


def test_without_decay_nothing_can_decay_by_accident():
    model = foreign_model()
    check_decay_groups(model, groups_by_name(model.named_parameters(), 0.0, "nothing matches this"))
