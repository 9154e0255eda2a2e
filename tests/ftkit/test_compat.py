"""What is relied on without a promise: each test fails when a new version changes it. See also tests/child_tuning."""

import pytest
import torch
from torch import nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from ftkit import _compat
from ftkit.models import load_base, meta_model, resolve_model
from tests import architectures
from tests.tiny import foreign_model


def test_transformers_still_restores_buffers_module_by_module():
    plain, model = load_base()[0], meta_model(resolve_model())
    model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.fill_(float("nan"))
    _compat.restore_buffers(model)
    names = dict(plain.named_buffers())
    assert len(names) == 2
    assert all(torch.equal(buffer, names[name]) for name, buffer in model.named_buffers())


def test_buffers_inside_a_foreign_module_are_restored_too():
    wrapped = nn.ModuleDict({"inner": foreign_model(torch.float32)})
    expected = {name: buffer.clone() for name, buffer in wrapped.named_buffers()}
    for buffer in wrapped.buffers():
        buffer.fill_(float("nan"))
    _compat.restore_buffers(wrapped)
    assert expected and all(torch.equal(b, expected[name]) for name, b in wrapped.named_buffers())


def test_a_module_s_buffers_that_another_one_sets_are_restored_and_no_parameter_is_touched():
    plain, model = architectures.build("falcon"), architectures.build("falcon")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(float("nan"))
    _compat.restore_buffers(model)
    assert any("mup_vector" in name for name, _ in plain.named_buffers())
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))
    assert all(parameter.isnan().all() for parameter in model.parameters())


def test_transformers_still_says_which_attention_an_architecture_has():
    assert _compat.supported_attention(type(foreign_model())) == (True, True)
    assert _compat.supported_attention(type(architectures.build("bloom"))) == (False, False)


def test_transformers_still_says_which_architectures_it_converts():
    assert _compat.conversions_on_load(foreign_model()) == []
    with torch.device("meta"):
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 16, "num_experts": 2, "head_dim": 4}
        experts = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, num_attention_heads=2, intermediate_size=8))
    assert _compat.conversions_on_load(experts)


def test_transformers_still_lists_what_it_passes_over():
    model = foreign_model()
    model._keys_to_ignore_on_load_unexpected = {r"^mtp\."}
    assert _compat.may_be_left_out(model, "mtp.norm.weight")
    assert _compat.may_be_left_out(model, "model.layers.0.self_attn.rotary_emb.inv_freq")
    assert not _compat.may_be_left_out(model, "model.layers.9.norm.weight")


def test_groups_of_parameters_are_found_by_both_of_their_names():
    """torch 2.11 has one group at most, 2.13 a list."""

    class Module:
        def __init__(self, **state):
            self.state = type("State", (), state)

        def _get_fsdp_state(self):
            return self.state

    groups = _compat._parameter_groups
    assert groups(Module(_fsdp_param_groups=[1, 2])) == [1, 2]
    assert groups(Module(_fsdp_param_group=1)) == [1] and groups(Module(_fsdp_param_group=None)) == []
    with pytest.raises(AttributeError, match="_fsdp_param_group"):  # the mutation: a third name shows
        groups(Module(_another=1))


def test_layers_are_computed_again_by_both_names_of_the_method():
    model = foreign_model(torch.float32).train()
    _compat.enable_activation_checkpointing(model)
    assert model.is_gradient_checkpointing
    asked = []
    new = type("New", (), {"activation_checkpointing_enable": lambda self, options: asked.append(options)})
    _compat.enable_activation_checkpointing(new())
    assert asked == [{"use_reentrant": False}]


def test_the_kernel_of_fused_adamw_takes_what_torchs_optimizer_gives_it():
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(70)) for _ in range(2)]
    ours, moments = [w.detach().clone() for w in weights], [[torch.zeros(70), torch.zeros(70)] for _ in weights]
    reference = torch.optim.AdamW(weights, lr=0.1, weight_decay=0.3, fused=True)
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.3, "amsgrad": False}
    options |= {"maximize": False, "foreach": None, "fused": None}
    for step in (1.0, 2.0):
        for weight in weights:
            weight.grad = torch.randn(70)
        reference.step()
        first, second = map(list, zip(*moments, strict=True))
        _compat.fused_adamw(ours, [w.grad for w in weights], first, second, [], [torch.tensor(step)] * 2, options)
        assert all(torch.equal(a, b) for a, b in zip(ours, weights, strict=True))
    _compat.fused_adamw(
        ours, [w.grad for w in weights], first, second, [], [torch.tensor(step)] * 2, options
    )  # a step twice
    reference.step()
    assert not any(torch.equal(a, b) for a, b in zip(ours, weights, strict=True))
