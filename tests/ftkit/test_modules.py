"""After the block a model is bitwise what it was, whatever happened within; and layers are found."""

import copy

import pytest
import torch
from torch import nn

from ftkit._modules import decoder_layers, eval_mode, preserve_state


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    model[0].bias.grad = torch.ones(4)
    model[1].eval()
    return model


def spoil(model):
    """Move everything that a training could move."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model.train()(torch.randn(8, 3)).sum().backward()  # moves the running statistics, which are buffers
    optimizer.step()
    assert not torch.equal(model[1].running_mean, torch.zeros(4))


def assert_equal_state(model, before):
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_buffers_gradients_and_modes_come_back(model):
    before, grad = copy.deepcopy(model.state_dict()), model[0].bias.grad
    with preserve_state(model):
        assert all(p.grad is None for p in model.parameters())
        spoil(model)
        assert not torch.equal(model[0].weight, before["0.weight"])
    assert_equal_state(model, before)
    assert model[0].bias.grad is grad and torch.equal(grad, torch.ones(4))
    assert all(p.grad is None for p in model.parameters() if p is not model[0].bias)
    assert [module.training for module in model] == [True, False, True]


def test_the_weights_come_back_as_often_as_asked(model):
    before = copy.deepcopy(model.state_dict())
    with preserve_state(model) as restart:
        for _ in range(2):
            spoil(model)
            restart()
            assert_equal_state(model, before)
            assert all(p.grad is None for p in model.parameters())


def test_an_error_leaves_no_trace_either(model):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="on the way"), preserve_state(model):
        spoil(model)
        raise RuntimeError("on the way")
    assert_equal_state(model, before)


def test_in_eval_mode_all_modules_are_and_afterwards_each_has_its_own(model):
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model] == [True, False, True]
    with pytest.raises(RuntimeError, match="on the way"), eval_mode(model):
        raise RuntimeError("on the way")
    assert [module.training for module in model] == [True, False, True]
    # The mutation: what `model.train(was_training)` would leave.
    assert [module.training for module in model.train()] == [True, True, True]


def test_decoder_layers_are_the_blocks_and_not_the_experts_in_one():
    blocks = nn.ModuleList(nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(2, 2) for _ in range(8))}) for _ in "ab")
    assert decoder_layers(nn.ModuleDict({"layers": blocks, "heads": nn.ModuleList([nn.Linear(2, 2)])})) == list(blocks)
    with pytest.raises(ValueError, match="no ModuleList"):
        decoder_layers(nn.Linear(2, 2))
