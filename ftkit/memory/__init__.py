"""Memory told in advance: bytes of a training step on one rank, from a model (meta is enough) and a plan.

print(table(estimate_memory(named_model("llama-3-8b"), Plan(mesh=(1, 8, 1), compute="bfloat16"))))
"""

from .estimate import Estimate, estimate_memory
from .measure import Measured, measure_memory
from .plan import Plan
from .published import named_model
from .report import compare, table

__all__ = [
    "Estimate",
    "Measured",
    "Plan",
    "compare",
    "estimate_memory",
    "measure_memory",
    "named_model",
    "table",
]
