"""Estimate the memory of a training step on one rank, from a model (on meta is enough) and a plan.

print(table(estimate_memory(published_meta_model("llama-3-8b"), MemoryPlan(mesh=(1, 8, 1), compute_dtype="bfloat16"))))
"""

from ftkit._compat import fake_ranks

from .estimate import Estimate, compare, estimate_memory, table
from .plan import MemoryPlan, published_meta_model

__all__ = [
    "Estimate",
    "MemoryPlan",
    "compare",
    "estimate_memory",
    "fake_ranks",
    "published_meta_model",
    "table",
]
