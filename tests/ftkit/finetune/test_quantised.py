"""QLoRA: what is refused, what bitsandbytes is asked for, and checkpoints of a base whose layers save more tensors.

bitsandbytes itself is not among the tests' packages.
"""

import pytest
import torch
from torch import nn

from ftkit.distributed.checkpoint import Checkpoints, full_state_dict
from ftkit.distributed.device import pick_device
from ftkit.distributed.mesh import DistributedContext
from ftkit.finetune import quantised
from ftkit.finetune.config import Config, validate
from ftkit.finetune.export import export_lora
from ftkit.finetune.lora import attach_lora, lora_options
from ftkit.finetune.quantised import drop_quantisation_states, load_quantised, quantisation
from tests.tiny import foreign_model, foreign_tokenizer, save_foreign


@pytest.mark.parametrize(
    ("settings", "installed", "said"),
    [
        ({"load_in_4bit": True}, False, "--load_in_4bit needs the package bitsandbytes: install it"),
        ({"load_in_8bit": True}, False, "--load_in_8bit needs the package bitsandbytes"),
        ({"load_in_4bit": True, "load_in_8bit": True}, True, "exclude each other: give one"),
        ({"load_in_4bit": True, "method": "full"}, True, "give --method lora, or leave it"),
        ({"load_in_4bit": True, "compile": True}, True, "does not run with --compile"),
    ],
)
def test_what_cannot_be_quantised_is_refused(tmp_path, monkeypatch, settings, installed, said):
    monkeypatch.setattr(quantised, "is_bitsandbytes_available", lambda: installed)
    config = Config(output=str(tmp_path / "new"), **{"method": "lora"} | settings)
    with pytest.raises(ValueError, match=said):
        validate(config)
    assert not (tmp_path / "new").exists()


def test_a_quantised_base_is_not_sharded(tmp_path, monkeypatch):
    monkeypatch.setattr(quantised, "is_bitsandbytes_available", lambda: True)
    config = Config(output=str(tmp_path / "new"), method="lora", load_in_4bit=True)
    validate(config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--load_in_4bit does not shard the base: start one process"):
        validate(config)


@pytest.fixture
def asked(monkeypatch):
    """What `from_pretrained` is asked for; it then loads without quantising."""
    given = {}

    def load(source, **options):
        given.update(options)
        return foreign_model(options["dtype"])

    monkeypatch.setattr(quantised, "load_causal_lm", load)
    return given


def test_qlora_asks_for_nf4_with_double_quantisation_and_float32_for_the_rest(asked):
    model = load_quantised("any", True, torch.bfloat16, torch.device("cpu"))
    config = asked["quantization_config"]
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16 and asked["device_map"] == {"": torch.device("cpu")}
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # here nothing was quantised
    assert not any(p.requires_grad for p in model.parameters())
    config = quantisation(False, torch.bfloat16)
    assert config.load_in_8bit and not config.load_in_4bit


class Packed(nn.Linear):
    """A layer whose weight is packed and which saves scales beside it, as bitsandbytes' do."""

    def __init__(self, inside: int, out: int):
        super().__init__(inside, out, bias=False)
        self.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)

    def forward(self, x):
        return x.new_zeros(*x.shape[:-1], self.out_features)

    def _save_to_state_dict(self, state, prefix, keep_vars):
        super()._save_to_state_dict(state, prefix, keep_vars)
        state[f"{prefix}weight.absmax"] = torch.ones(2)
        state[f"{prefix}SCB"] = torch.ones(2)


@pytest.mark.parametrize("hook", [True, False])
def test_checkpoints_leave_the_scales_of_the_base_out(tmp_path, hook):
    model = nn.ModuleDict({"base": nn.ModuleDict({"frozen": Packed(4, 4)}), "adapter": nn.Linear(4, 4)})
    optimizer = torch.optim.AdamW(model["adapter"].parameters())
    model["adapter"](torch.ones(1, 4)).sum().backward()
    optimizer.step()
    checkpoints = Checkpoints(tmp_path, {}, DistributedContext(0, 1, pick_device(), None), trainable_only=True)
    if not hook:  # why there is one
        with pytest.raises(AttributeError):
            full_state_dict(model, trainable_only=True)
        return
    model["base"].register_state_dict_post_hook(drop_quantisation_states)
    assert full_state_dict(model, trainable_only=True).keys() == {"adapter.weight", "adapter.bias"}
    checkpoints.save(1, model, optimizer, {})
    checkpoints.finish()
    weight = model["adapter"].weight.detach().clone()
    nn.init.zeros_(model["adapter"].weight)
    checkpoints.load(model, optimizer, {})
    assert torch.equal(model["adapter"].weight, weight)


def test_an_adapter_of_a_quantised_base_is_exported_alone(tmp_path):
    source = str(save_foreign(tmp_path / "qwen"))
    options = lora_options(Config(output="x", method="lora"))
    trained = {n: p for n, p in attach_lora(foreign_model(), **options).named_parameters() if p.requires_grad}
    folders = tmp_path / "adapter", tmp_path / "model"
    said = export_lora(trained, options, source, foreign_tokenizer(), [], *folders, quantised=True)
    assert f"ftkit merge {folders[0]} {folders[1]}" in said
    assert (folders[0] / "adapter_model.safetensors").is_file() and not folders[1].exists()
