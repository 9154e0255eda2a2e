"""torch.compile for each decoder layer: the layers share one piece of code, so it is compiled once."""

import shutil

import torch
from torch import nn

from ftkit.distributed.sharding import decoder_layers


def compile_layers(model: nn.Module) -> None:
    """Compile the decoder layers of `model` in place, before they are sharded; names and weights stay.

    dynamic: batches differ in length, and a new length shall not compile again.
    """
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)


def check_compiler(device: torch.device) -> None:
    """Raise ValueError where nothing can compile what torch.compile writes."""
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise ValueError(
            "--compile needs a C++ compiler on a CPU and found none: install g++, or leave --compile"
        )
