"""A run's peak memory: estimated before training, and compared with step 2.

Step 1 is skipped because AdamW allocates its moments during it. Measured is, on CUDA, the most that the allocator gave
out; elsewhere, the most bytes of tensors that lived at the same time.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import nn

from ftkit.memory import Estimate, MemoryPlan, estimate_memory
from ftkit.memory.estimate import size
from ftkit.memory.trace import Trace
from ftkit.memory.tracker import MemoryTracker
from ftkit.models import meta_model

from .config import Run
from .optimizers import FUSED_DEVICES, OPTIMIZERS
from .quantised import is_quantised

Batch = dict[str, torch.Tensor]


def print_memory_estimate(run: Run, source: str, second_step: list[Batch]) -> Estimate | None:
    """Print the estimated peak of a rank for sequences of `max_length`.

    Args:
        source: model name or folder.
        second_step: the micro-batches of rank 0 in step 2.

    Returns the estimate for `second_step` itself, or None, after printing the reason, for a model that cannot be
    traced: the run goes on without it.
    """
    config = run.config
    if is_quantised(config):
        print("the memory of a quantised base is not estimated", flush=True)
        return None
    longest = plan_of(run, config.micro_batch_size, config.max_length, 2)
    own = plan_of_step(run, second_step)
    try:
        estimate = _estimate(source, longest)
        print(
            f"estimated peak memory per rank: {size(estimate.peak)} for micro-batches of {config.micro_batch_size} "
            f"sequences of {config.max_length} tokens",
            flush=True,
        )
        return estimate if own == longest else _estimate(source, own)
    except Exception as error:
        print(f"the memory of this model cannot be estimated: {error}", flush=True)
        return None


def plan_of(run: Run, sequences: int, tokens: int, accumulation: int) -> MemoryPlan:
    """The memory plan of a run with micro-batches of this size, of which a step accumulates `accumulation`.

    Attention is assumed to have a mask: a micro-batch without padding has none, and uses up to 5 % less.
    """
    config, device = run.config, run.device_info.device.type
    kernel = "foreach" if device == "cuda" else "loop"
    compute = str(run.compute_dtype).removeprefix("torch.")
    return MemoryPlan(
        method="lora" if run.lora else "frozen" if config.freeze else "full",
        options=run.lora_options if run.lora else {},
        freeze=config.freeze,
        **OPTIMIZERS[config.optimizer].memory,
        reserve_p=config.reserve_p,
        param_dtype=compute if run.lora else "float32",
        compute_dtype=compute,
        mesh=run.dims,
        reshard_after_forward=config.reshard_after_forward,
        micro_batch_size=sequences,
        max_length=max(tokens, 2),  # a single token has nothing to predict
        packing=config.packing,
        accumulation=accumulation,
        activation_checkpointing=config.activation_checkpointing,
        loss_chunk=config.loss_chunk,
        kernel="fused" if config.optimizer == "adamw" and device in FUSED_DEVICES else kernel,
    )


def plan_of_step(run: Run, micro_batches: list[Batch]) -> MemoryPlan:
    """As `plan_of`, for the micro-batches of one step on one rank: for the largest, after one that left gradients."""
    sequences, tokens = max((batch["input_ids"].shape for batch in micro_batches), key=lambda s: s[0] * s[1])
    # From the second micro-batch on, the peak is the same.
    return plan_of(run, sequences, tokens, min(2, len(micro_batches)))


KEPT_TRACES = 8
_traces: dict[str, Trace] = {}  # of this process, by model configuration and plan: the last ones used


def _estimate(source: str, plan: MemoryPlan) -> Estimate:
    """As `estimate_memory`. Runs in one process, as in a notebook, share a trace if only their optimizers differ."""
    model = meta_model(source)
    step = replace(plan, optimizer="adamw", child_state="task-free", reserve_p=1.0, kernel="loop")
    key = f"{model.config.to_json_string(use_diff=False)} {step}"
    estimate = estimate_memory(model, plan, traced=_traces.pop(key, None))
    _traces[key] = estimate.traced
    if len(_traces) > KEPT_TRACES:
        del _traces[next(iter(_traces))]
    return estimate


class MemoryMonitor:
    """Watches the first two steps of a run on one rank: `used` is the peak of the second in bytes, None before."""

    def __init__(self, model: nn.Module, device: torch.device):
        self.model, self.device, self.used = model, device, None
        self.tracker = MemoryTracker()

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step `number` of this process, counted from 0."""
        if number > 1:
            yield
            return
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        with nullcontext() if cuda else self.tracker:
            if number == 0:
                self.tracker.label(self.model.parameters(), "weights")
            self.tracker.clear_peaks()
            yield
        if number == 1:
            self.used = torch.cuda.max_memory_allocated(self.device) if cuda else max(self.tracker.peaks.values())
