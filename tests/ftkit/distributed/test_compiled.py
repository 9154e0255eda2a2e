"""Compiled layers: the same losses and gradients, names and weights as they were."""

import shutil

import pytest
import torch

from ftkit._modules import decoder_layers
from ftkit.distributed.fsdp import apply_compile, check_compiler
from tests.tiny import foreign_model

pytestmark = pytest.mark.thorough

CPU = torch.device("cpu")


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_compiled_layers_compute_what_the_others_do():
    plain, compiled = foreign_model(torch.float32), foreign_model(torch.float32)
    for model in (plain, compiled):
        del model.model.layers[2:]  # two are as good as three
        model.config.num_hidden_layers = 2
    names = list(compiled.state_dict())
    apply_compile(compiled)
    assert list(compiled.state_dict()) == names
    assert all(layer._compiled_call_impl is not None for layer in decoder_layers(compiled))
    ids = torch.arange(3, 19).view(2, 8)
    for model in (plain, compiled):
        model(input_ids=ids, labels=ids).loss.backward()
    for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        assert (one.grad - other.grad).abs().max() <= 1e-4 * one.grad.abs().max(), name


def test_without_a_compiler_it_is_said_before_anything_is_loaded(monkeypatch):
    check_compiler(torch.device("cuda"))  # Triton needs none
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ValueError, match=r"install g\+\+"):
        check_compiler(CPU)
