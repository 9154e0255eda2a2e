"""A base in 4 bits as QLoRA has it (Dettmers et al. 2023): the tensors of bitsandbytes' layers, without their values.

A weight takes 4 bits and 8 / 64 + 32 / (64 · 256) bits for its constants, which are quantised themselves (double
quantisation): 4.127. Each use dequantises the matrix of a layer, forward and backward. Embeddings, norms, the head and
whatever is no `nn.Linear`, such as experts in one tensor, stay as they are.
"""

import torch
from torch import nn
from torch.nn import functional as F

BLOCK = 64  # weights that share a constant, of one byte
BLOCKS = 256  # constants that share one in float32


class Linear4bit(nn.Linear):
    """A linear layer whose weight is packed; its outputs have the right shapes and no meaning."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., in_features)
        y = _Product.apply(x.to(self.compute_dtype), self)
        # PEFT's LoRA on such a layer copies the output first.
        return (y if self.bias is None else y + self.bias.to(y.dtype)).to(x.dtype).clone()

    def dequantised(self) -> torch.Tensor:
        constants = torch.empty(self.constants.shape, device=self.weight.device)
        weight = torch.empty(self.out_features, self.in_features, dtype=self.compute_dtype, device=self.weight.device)
        del constants  # alive until the weight is there
        return weight


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, layer: Linear4bit) -> torch.Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantised())

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient @ ctx.layer.dequantised(), None


def quantise(model: nn.Module, compute_dtype: torch.dtype) -> None:
    """Pack the weights of every linear layer, in place, but for those of adapters and of the head.

    Raises ValueError for a model without any, as GPT-2, whose layers are `Conv1D`.
    """
    head = model.get_output_embeddings()
    for name, layer in model.named_modules():
        if type(layer) is not nn.Linear or layer is head or "lora_" in name or "modules_to_save" in name:
            continue
        device, elements = layer.weight.device, layer.weight.numel()
        blocks = -(-elements // BLOCK)

        def frozen(length: int, dtype: torch.dtype, device: torch.device = device) -> nn.Parameter:
            return nn.Parameter(torch.empty(length, dtype=dtype, device=device), requires_grad=False)

        layer.weight = frozen(-(-elements // 2), torch.uint8)
        layer.constants = frozen(blocks, torch.uint8)
        layer.constants_of_constants = frozen(-(-blocks // BLOCKS), torch.float32)
        layer.compute_dtype, layer.__class__ = compute_dtype, Linear4bit
    if not any(isinstance(layer, Linear4bit) for layer in model.modules()):
        raise ValueError(f"{type(model).__name__} has no nn.Linear whose weight could have 4 bits: leave base_dtype")
