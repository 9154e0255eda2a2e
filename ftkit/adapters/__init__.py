"""Adapters by PEFT, one entry a method; merging that is verified; saving that knows its base.

model = attach(model, "lora", r=8)
optimizer = make_optimizer(model, "lora", lr=2e-3)
"""

from .merge import MergeError, MergeReport, merge_and_verify
from .methods import METHODS, attach, make_optimizer
from .saving import adapter_size_bytes, load_adapter, save_adapter

__all__ = [
    "METHODS",
    "MergeError",
    "MergeReport",
    "adapter_size_bytes",
    "attach",
    "load_adapter",
    "make_optimizer",
    "merge_and_verify",
    "save_adapter",
]
