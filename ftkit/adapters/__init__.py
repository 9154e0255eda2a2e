"""Fine-tuning methods and PEFT adapters: attach, build the optimizer, merge with verification, save and load.

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
