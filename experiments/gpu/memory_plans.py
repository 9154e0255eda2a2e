"""The program's estimate of its peak memory, and what the allocator gave out: six plans of one model on one GPU."""

import gc

import torch

from .program import estimate, measure_peak, prepared
from .records import Write

PLANS = {
    "full": {},
    "full, recomputing": {"activation_checkpointing": True},
    "full, loss in chunks": {"loss_chunk": 1024},
    "full, both, accumulating": {"activation_checkpointing": True, "loss_chunk": 1024, "batch_size": 8},
    "LoRA": {"method": "lora"},
    "child-tuning, both": {"optimizer": "child-tuning", "activation_checkpointing": True, "loss_chunk": 1024},
}
SIZES = {False: ("Llama-3.2-1B", 1024, 4), True: ("tiny", 32, 2)}  # by tiny: shape, tokens, sequences


def measure(device: torch.device, tiny: bool, write: Write) -> None:
    shape, length, sequences = SIZES[tiny]
    for name, flags in PLANS.items():
        flags = {"batch_size": sequences, "micro_batch_size": sequences, **flags}
        with prepared(shape, length, 2 * flags["batch_size"], **flags) as job:
            estimated = estimate(job)
            before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
            measured = measure_peak(job)
        write(
            {
                "plan": name,
                "shape": shape,
                "length": length,
                "flags": flags,
                "estimated_bytes": estimated.peak,
                "phase": estimated.phase,
                "measured_bytes": measured,
                "allocated_before": before,
            }
        )
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
