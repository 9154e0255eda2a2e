"""A run's own memory: told before it starts, and held against what its second step used.

The second, because the first has no moments yet. On CUDA "used" is what the allocator gave out at most, elsewhere
the bytes of tensors that were alive at most.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import nn

from ftkit.distributed.mesh import ParallelDims
from ftkit.memory import Estimate, MemoryPlan, estimate_memory
from ftkit.memory.estimate import size
from ftkit.memory.trace import Trace
from ftkit.memory.tracker import MemoryTracker
from ftkit.models import meta_model

from .config import Config
from .optimizers import OPTIMIZERS

Batch = dict[str, torch.Tensor]


def print_memory_estimate(
    config: Config, source: str, shape: ParallelDims, dtype: torch.dtype, second_step: list[Batch], cuda: bool
) -> Estimate | None:
    """Print the peak of a rank for rows of `max_length`; returns the estimate for the second step's own rows.

    `dtype` is what is computed in, `second_step` the micro-batches of rank 0. A model that cannot be traced costs the
    prediction, not the run: then None, and the reason is printed.
    """
    longest = plan_of(config, shape, dtype, config.micro_batch_size, config.max_length, 2, cuda)
    own = plan_of_step(config, shape, dtype, second_step, cuda)
    try:
        told = _estimate(source, longest)
        print(
            f"peak memory of a rank: {size(told.peak)} told for micro-batches of {config.micro_batch_size} rows "
            f"with {config.max_length} tokens",
            flush=True,
        )
        return told if own == longest else _estimate(source, own)
    except Exception as error:
        print(f"memory cannot be told of this model: {error}", flush=True)
        return None


_traces: dict[str, Trace] = {}  # of this process, by design of the model and plan


def _estimate(source: str, plan: MemoryPlan) -> Estimate:
    """Runs in one process, as in a notebook, may differ in their optimizer alone: they share a trace."""
    model = meta_model(source)
    step = replace(plan, optimizer="adamw", child_state="task-free", reserve_p=1.0, kernel="loop")
    key = f"{model.config.to_json_string(use_diff=False)} {step}"
    told = estimate_memory(model, plan, traced=_traces.get(key))
    _traces[key] = told.traced
    return told


def plan_of(
    config: Config,
    shape: ParallelDims,
    dtype: torch.dtype,
    rows: int,
    tokens: int,
    accumulation: int,
    cuda: bool,
) -> MemoryPlan:
    """What `ftkit.finetune` does with micro-batches of `rows` and `tokens`, of which a step has `accumulation`.

    Attention is taken to have a mask: where no row needs padding it has none, and a run uses some percent less.

    Raises ValueError for an optimizer that nothing is known of here.
    """
    if config.optimizer not in OPTIMIZERS:
        raise ValueError(
            f"the memory of optimizer {config.optimizer!r} is not known: add it to ftkit.finetune.optimizers.OPTIMIZERS"
        )
    lora, compute = config.method == "lora", str(dtype).removeprefix("torch.")
    options = {"r": config.lora_r, "lora_alpha": config.lora_alpha, "target_modules": config.target_modules}
    return MemoryPlan(
        method="lora" if lora else "frozen" if config.freeze else "full",
        options=options if lora else {},
        freeze=config.freeze,
        **OPTIMIZERS[config.optimizer],
        reserve_p=config.reserve_p,
        param_dtype=compute if lora else "float32",
        compute_dtype=compute,
        mesh=shape,
        reshard_after_forward=config.reshard_after_forward,
        micro_batch_size=rows,
        max_length=max(tokens, 2),  # a single token has nothing to predict
        accumulation=accumulation,
        activation_checkpointing=config.activation_checkpointing,
        kernel="foreach" if cuda else "loop",
    )


def plan_of_step(
    config: Config, shape: ParallelDims, dtype: torch.dtype, micro_batches: list[Batch], cuda: bool
) -> MemoryPlan:
    """As `plan_of`, of the micro-batches of one step on one rank: of the largest, with gradients from one before it."""
    rows, tokens = max((batch["input_ids"].shape for batch in micro_batches), key=lambda s: s[0] * s[1])
    # From the second micro-batch on all have the same peak.
    return plan_of(config, shape, dtype, rows, tokens, min(2, len(micro_batches)), cuda)


class MemoryMonitor:
    """Watches the first two steps of a run, on one rank: `used` is the most bytes that the second had, None before."""

    def __init__(self, model: nn.Module, device: torch.device):
        self.model, self.device, self.used = model, device, None
        self.live = MemoryTracker()

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step `number` of this process, counted from 0."""
        if number > 1:
            yield
            return
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        with nullcontext() if cuda else self.live:
            if number == 0:
                self.live.label(self.model.parameters(), "weights")
            self.live.peaks.clear()
            yield
        if number == 1:
            self.used = torch.cuda.max_memory_allocated(self.device) if cuda else max(self.live.peaks.values())
