"""How long a fine-tune takes, and how often it should be saved: estimates from stated assumptions, for planning.

N parameters; a token costs about 6 N floating-point operations in full fine-tuning: 2 N forward and 4 N backward. With
a frozen base the gradients of its weights are not computed, which leaves 4 N. Attention scores are left out: at 2,048
tokens they add 7 % for Llama 3 8B. MFU (model FLOPs utilisation) is the share of the GPUs' peak that these operations
reach; operations of activation checkpointing do not count as useful.
"""

import math
from dataclasses import dataclass

from ftkit.memory.plan import SIZES

FULL, FROZEN_BASE = 6, 4  # operations per parameter and token
STATE_BYTES = 12  # of a trained parameter in a checkpoint: weight and two moments in float32
H100, A100 = 989e12, 312e12  # peak operations per second in bfloat16, without sparsity (NVIDIA's data sheets)
HOUR = 3600.0


@dataclass(frozen=True)
class Job:
    """What is to be trained on: `tokens` are the mean of a conversation, `batch_size` counts conversations."""

    conversations: int
    tokens: int
    epochs: float
    batch_size: int

    @property
    def steps(self) -> int:
        return math.ceil(self.epochs * math.ceil(self.conversations / self.batch_size))

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.tokens


@dataclass(frozen=True)
class Cluster:
    """Assumptions about the machines. `failures_apart`: mean seconds between two interruptions of the whole run."""

    gpus: int
    mfu: float
    peak: float = H100  # operations per second of a GPU
    write_rate: float = 2e9  # bytes per second to shared storage, all ranks together
    failures_apart: float = 6 * HOUR


@dataclass(frozen=True)
class Timing:
    """Seconds are rounded nowhere; `save_every` is Young's interval in whole steps, at most the run's."""

    steps: int
    step_seconds: float
    write_seconds: float
    save_every: int

    @property
    def hours(self) -> float:
        return self.steps * self.step_seconds / HOUR


def estimate_time(parameters: int, trained: int, job: Job, cluster: Cluster) -> Timing:
    """The time of a run of `parameters`, of which `trained` are trained.

    Young's interval (notebook 15) is √(2 · seconds of a write · seconds between failures).
    """
    if not 0 < trained <= parameters:
        raise ValueError(f"{trained:,} of {parameters:,} parameters are trained: give at least 1 and at most all")
    operations = (FULL if trained == parameters else FROZEN_BASE) * parameters * job.tokens_per_step
    step = operations / (cluster.gpus * cluster.peak * cluster.mfu)
    write = STATE_BYTES * trained / cluster.write_rate
    young = math.sqrt(2 * write * cluster.failures_apart)
    return Timing(job.steps, step, write, max(1, min(job.steps, round(young / step))))


def tokens_per_second(step_seconds: float, job: Job, gpus: int = 1) -> float:
    """Tokens per second and GPU."""
    return job.tokens_per_step / step_seconds / gpus


def parameters_of(model: str) -> int:
    """The parameters of a published Llama; `model` is a key of ftkit.memory's SIZES."""
    hidden, inner, layers, heads, kv_heads, vocabulary = SIZES[model]
    linear = sum(rows * columns for rows, columns in _linear_layers(hidden, inner, hidden * kv_heads // heads))
    return 2 * vocabulary * hidden + layers * (linear + 2 * hidden) + hidden


def lora_parameters_of(model: str, r: int) -> int:
    """The parameters of LoRA adapters on all its linear layers: r for each row and each column."""
    hidden, inner, layers, heads, kv_heads, _ = SIZES[model]
    shapes = _linear_layers(hidden, inner, hidden * kv_heads // heads)
    return layers * r * sum(rows + columns for rows, columns in shapes)


def _linear_layers(hidden: int, inner: int, keys: int) -> list[tuple[int, int]]:
    """Shapes of q, k, v, o, gate, up and down."""
    return [(hidden, hidden), *[(hidden, keys)] * 2, (hidden, hidden), *[(hidden, inner)] * 2, (inner, hidden)]
