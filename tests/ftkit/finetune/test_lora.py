"""LoRA on ranks: adapters begin the same everywhere, and names of parameters and files belong together."""

import pytest
import torch

from ftkit.finetune.lora import attach_lora, attach_trained_adapters, base_file_name, reset_adapters
from tests.tiny import foreign_model

OPTIONS = {"r": 4, "alpha": 8.0, "target_modules": "all-linear"}


def adapters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_adapters_depend_on_seed_and_name_alone():
    models = [attach_lora(foreign_model(), **OPTIONS) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        torch.manual_seed(id(model) % 1000)  # what else was drawn before does not matter
        reset_adapters(model, seed)
    one, same, other = map(adapters, models)
    assert all(torch.equal(one[name], same[name]) for name in one)
    firsts = [name for name in one if "lora_A" in name]
    assert all(not torch.equal(one[name], other[name]) for name in firsts)
    assert len({one[name].flatten()[0].item() for name in firsts}) == len(firsts)
    for name in firsts:
        bound = one[name].shape[1] ** -0.5
        assert one[name].abs().max() <= bound and one[name].abs().max() > 0.8 * bound
    assert all(one[name].eq(0).all() for name in one if "lora_B" in name)


def test_base_in_bfloat16_adapters_in_float32():
    model = attach_lora(foreign_model(torch.bfloat16), **OPTIONS)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_names_in_files_are_those_of_the_base():
    model = attach_lora(foreign_model(), **OPTIONS)
    names = [base_file_name(name) for name, _ in model.named_parameters(remove_duplicate=False)]
    assert {name for name in names if name} == set(foreign_model().state_dict())
    assert names.count(None) == len(adapters(model))


def test_trained_adapters_come_back_and_missing_ones_are_named():
    model = attach_lora(foreign_model(), **OPTIONS)
    reset_adapters(model, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    trained = adapters(model)
    ids = torch.arange(3, 11).view(1, 8)
    again = attach_trained_adapters(foreign_model(), trained, **OPTIONS)
    assert torch.equal(again.eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    trained.pop(next(iter(trained)))
    with pytest.raises(RuntimeError, match="adapters and model differ in"):
        attach_trained_adapters(foreign_model(), trained, **OPTIONS)
