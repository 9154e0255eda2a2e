"""The program's optimizers: flags reach them, groups are the paper's, and 8 bits are refused where they do not run."""

import sys
from types import ModuleType

import pytest
import torch

from ftkit.finetune.config import Config, validate
from ftkit.finetune.lora import attach_lora, lora_options
from ftkit.finetune.optimizers import OPTIMIZERS, parameter_groups
from ftkit.parameters import check_decay_groups
from tests.tiny import foreign_model

ADAM = {"adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6}


class Stand(torch.optim.AdamW):
    """For bitsandbytes' AdamW8bit."""


@pytest.fixture
def bitsandbytes(monkeypatch):
    package, optim = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    package.optim, optim.AdamW8bit = optim, Stand
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    return optim


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit", "child-tuning"])
def test_betas_and_epsilon_reach_every_optimizer(bitsandbytes, name):
    config, model = Config(output="x", optimizer=name, lr=1e-3, **ADAM), foreign_model(torch.float32)
    optimizer = OPTIMIZERS[name].build(parameter_groups(model, config), config, None)
    assert isinstance(optimizer, Stand) == (name == "adamw_8bit")
    check_decay_groups(model, optimizer.param_groups)
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (1e-3, (0.8, 0.95), 1e-6)


def test_lora_plus_has_its_ratio_in_the_program_too():
    config = Config(output="x", method="lora", lr=1e-3, loraplus_lr_ratio=8.0, use_dora=True, modules_to_save="norm")
    model = attach_lora(foreign_model(torch.float32), **lora_options(config))
    optimizer = OPTIMIZERS["adamw"].build(parameter_groups(model, config), config, None)
    check_decay_groups(model, optimizer.param_groups)
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert optimizer.param_groups[0]["lr"] == 1e-3  # what the log shows
    assert all(rate == pytest.approx(8e-3 if "lora_B" in name else 1e-3) for name, rate in rates.items())
    assert any("magnitude" in name for name in rates) and any("modules_to_save" in name for name in rates)


def test_8_bits_are_refused_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # also where it is installed
    with pytest.raises(ValueError, match="adamw_8bit needs the package bitsandbytes: install it, or give adamw"):
        validate(Config(output=str(tmp_path / "new"), optimizer="adamw_8bit"))


def test_8_bits_are_refused_on_ranks_and_where_a_step_fails(tmp_path, bitsandbytes, monkeypatch):
    config = Config(output=str(tmp_path / "new"), optimizer="adamw_8bit")
    validate(config)

    def step(self):
        raise RuntimeError("no kernel for this device\nand more")

    monkeypatch.setattr(Stand, "step", step)
    with pytest.raises(ValueError, match=r"does not run on cpu \(no kernel for this device\): give adamw"):
        validate(config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="adamw_8bit takes no sharded parameters: start one process"):
        validate(config)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"adam_beta1": 1.0}, "--adam_beta1 is 1.0: give 0 to below 1"),
        ({"adam_beta2": -0.1}, "--adam_beta2 is -0.1"),
        ({"adam_epsilon": 0.0}, "--adam_epsilon is 0.0: give a positive number"),
        ({"adam_beta1": float("nan")}, "--adam_beta1 is nan"),
    ],
)
def test_impossible_betas_are_named(tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        validate(Config(output=str(tmp_path / "new"), **settings))


def test_adamw_steps_by_the_fused_kernel_and_as_the_loop_does():
    config, found = Config(output="x", lr=1e-2), {}
    for fused in (True, False):
        model = foreign_model(torch.float32)
        optimizer = OPTIMIZERS["adamw"].build(parameter_groups(model, config), config, None)
        assert all(group["fused"] for group in optimizer.param_groups)
        for group in optimizer.param_groups:
            group["fused"] = fused
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        found[fused] = list(model.parameters())
    for one, other in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_moments_that_the_fused_kernel_does_not_know_are_stepped_by_the_loop():
    config, model = Config(output="x"), foreign_model(torch.float32).to("meta")
    optimizer = OPTIMIZERS["adamw"].build(parameter_groups(model, config), config, None)
    assert not any(group["fused"] for group in optimizer.param_groups)
