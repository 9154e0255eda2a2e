"""A gate of zero lets nothing through: LLaMA-Adapter begins as the base model, biases or not."""

import pytest
import torch
from peft import AdaptionPromptConfig, TaskType, get_peft_model

from ftkit.adapters import attach, load_adapter, save_adapter

from .models import batch, model


def with_biases(kind):
    base = model(kind)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name.endswith("bias"):  # fresh ones are zero, and would hide the fault
                parameter.normal_()
    return base


@torch.no_grad()
def logits(tuned):
    return tuned.eval()(**batch()).logits


@pytest.mark.parametrize("kind", ["llama", "mistral"])  # with biases, and without
def test_it_begins_as_the_base(kind):
    base = logits(with_biases(kind))
    torch.testing.assert_close(logits(attach(with_biases(kind), "llama-adapter")), base)


def test_peft_alone_adds_the_bias_twice():
    """The day this fails, PEFT has mended it, and adaption_bias has to go."""
    config = AdaptionPromptConfig(task_type=TaskType.CAUSAL_LM, adapter_len=8, adapter_layers=3)
    moved = logits(get_peft_model(with_biases("llama"), config)) - logits(with_biases("llama"))
    assert moved.abs().max() > 1e-3  # rounding is a thousandth of that


def test_it_is_the_second_bias_and_nothing_else():
    """With the bias of o_proj at zero, PEFT's layer and the corrected one agree, the gate open."""

    def opened(tuned):
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "adaption_gate" in name:
                    parameter.fill_(0.7)
        return tuned

    def unbiased():
        base = with_biases("llama")
        for layer in base.model.layers:
            torch.nn.init.zeros_(layer.self_attn.o_proj.bias)
        return base

    config = AdaptionPromptConfig(task_type=TaskType.CAUSAL_LM, adapter_len=8, adapter_layers=3)
    torch.manual_seed(5)
    theirs = opened(get_peft_model(unbiased(), config))
    torch.manual_seed(5)
    ours = opened(attach(unbiased(), "llama-adapter"))
    # The prompts are drawn from the generator that made the model: copy them.
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(logits(ours), logits(theirs))
    assert (logits(ours) - logits(unbiased())).abs().max() > 1e-3


def test_a_loaded_adapter_is_corrected_too_and_a_switched_off_one_is_the_base(tmp_path):
    tuned = attach(with_biases("llama"), "llama-adapter")
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "adaption_gate" in name:
                parameter.fill_(0.5)
    loaded = load_adapter(with_biases("llama"), save_adapter(tuned, tmp_path))
    torch.testing.assert_close(logits(loaded), logits(tuned))
    with loaded.disable_adapter():
        torch.testing.assert_close(logits(loaded), logits(with_biases("llama")))
