"""A run's own memory: told before it starts, and held against what its second step used.

The second, because the first has no moments yet. On CUDA "used" is what the allocator gave out at most, elsewhere
the bytes of tensors that were alive at most.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from tqdm.auto import tqdm

from ftkit.distributed.mesh import MeshShape
from ftkit.memory import Estimate, Plan, compare, estimate_memory
from ftkit.memory.live import LiveBytes
from ftkit.memory.report import size
from ftkit.pocket import empty_base
from ftkit.run_config import Config

Batch = dict[str, torch.Tensor]


def tell(
    config: Config, source: str, shape: MeshShape, dtype: torch.dtype, second_step: list[Batch], cuda: bool
) -> Estimate | None:
    """Print the peak of a rank for rows of `max_length`; returns the estimate for the second step's own rows.

    `dtype` is what is computed in, `second_step` the micro-batches of rank 0. A model that cannot be traced costs the
    prediction, not the run: then None, and the reason is printed.
    """
    rows, tokens = max((batch["input_ids"].shape for batch in second_step), key=lambda s: s[0] * s[1])
    try:
        longest = _plan(config, shape, dtype, config.micro_batch_size, config.max_length, 2, cuda)
        told = estimate_memory(empty_base(source), longest)
        print(
            f"peak memory of a rank: {size(told.peak)} told for micro-batches of {config.micro_batch_size} rows "
            f"with {config.max_length} tokens",
            flush=True,
        )
        # From the second micro-batch on all have the same peak.
        own = _plan(config, shape, dtype, rows, max(tokens, 2), min(2, len(second_step)), cuda)
        return told if own == longest else estimate_memory(empty_base(source), own)
    except Exception as error:
        print(f"memory cannot be told of this model: {error}", flush=True)
        return None


def _plan(
    config: Config,
    shape: MeshShape,
    dtype: torch.dtype,
    rows: int,
    tokens: int,
    accumulation: int,
    cuda: bool,
) -> Plan:
    lora, child = config.method == "lora", config.optimizer != "adamw"
    compute = str(dtype).removeprefix("torch.")
    method = "lora" if lora else "child-tuning" if child else "frozen" if config.freeze else "full"
    options = {"r": config.lora_r, "lora_alpha": config.lora_alpha, "target_modules": config.target_modules}
    return Plan(
        method=method,
        options=options if lora else {},
        freeze=config.freeze,
        child_state="compact" if config.optimizer == "child-tuning-d" else "task-free",
        reserve_p=config.reserve_p,
        weights=compute if lora else "float32",
        compute=compute,
        mesh=(shape.dp_replicate, shape.dp_shard, shape.tp),
        reshard_after_forward=config.reshard_after_forward,
        micro_batch_size=rows,
        max_length=tokens,
        accumulation=accumulation,
        activation_checkpointing=config.activation_checkpointing,
        kernel="foreach" if cuda else "loop",
    )


class MemoryWatch:
    """Watches the first two steps of a run, on one rank, and says how the second compares with what was told."""

    def __init__(self, told: Estimate | None, model: nn.Module, device: torch.device):
        self.told, self.model, self.device = told, model, device
        self.live = LiveBytes()

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step `number` of this process, counted from 0."""
        if self.told is None or number > 1:
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
            used = torch.cuda.max_memory_allocated(self.device) if cuda else max(self.live.peaks.values())
            tqdm.write(compare(self.told, used))
