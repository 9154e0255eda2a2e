"""Memory told in advance: bytes of a training step on one rank, from a model (meta is enough) and a plan.

print(table(estimate_memory(named_model("llama-3-8b"), Plan(mesh=(1, 8, 1), compute="bfloat16"))))
"""

from .estimate import Estimate, compare, estimate_memory, table
from .measure import Measured, measure_memory
from .plan import MemoryPlan, published_meta_model

__all__ = [
    "Estimate",
    "Measured",
    "MemoryPlan",
    "compare",
    "estimate_memory",
    "measure_memory",
    "published_meta_model",
    "table",
]
