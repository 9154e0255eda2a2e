"""PEFT's adaption prompt (0.21) adds the bias of the output projection twice; here the second time is taken back.

What the prompts give goes through `o_proj` by itself and is added to the attention's output, which had the bias
already. So a Llama with `attention_bias` begins far from its base, although the gate is zero. Models without that
bias, most Llamas among them, are not concerned.
"""

import torch
from peft import PeftModel
from peft.tuners.adaption_prompt import AdaptedAttention


def without_second_bias(model: PeftModel) -> PeftModel:
    """Correct every layer with an adaption prompt whose output projection has a bias; returns the model."""
    for module in model.modules():
        if isinstance(module, AdaptedAttention) and module.model.o_proj.bias is not None:
            module.register_forward_hook(_take_back)
    return model


def _take_back(module: AdaptedAttention, _inputs: tuple, output: tuple) -> tuple[torch.Tensor, ...]:
    attended, *others = output  # attended: (B, T, D)
    return attended - module.model.o_proj.bias, *others
