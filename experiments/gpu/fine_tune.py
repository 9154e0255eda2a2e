"""Full fine-tune of a published shape with random weights: seconds of every step, and the peak memory."""

import json
from itertools import pairwise

import torch

from experiments.real_model.worker import Clock
from ftkit.models import meta_model

from .mfu import flops_per_token, parameters_in_products
from .program import estimate, prepared, train
from .records import Skip, Write

LENGTH = {False: 2048, True: 32}  # tokens of a sequence, by tiny
STEPS = {False: 14, True: 4}
MICRO_BATCHES = (8, 4, 2, 1)  # sequences; the first that fits is taken, and is the whole batch
USABLE = 0.95  # of the device's memory: the CUDA context and its libraries take the rest
GIB = 2**30
FLAGS = {  # of the program: what makes each fit one large GPU
    "Llama-3.2-1B": {"loss_chunk": 2048},
    "Llama-3-8B": {"loss_chunk": 2048, "activation_checkpointing": True},
}


def measure(device: torch.device, tiny: bool, write: Write, shape: str, compiled: bool = False) -> None:
    flags = {**FLAGS[shape], "compile": compiled}
    length, steps = LENGTH[tiny], STEPS[tiny]
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else GIB
    for sequences in MICRO_BATCHES:
        flags |= {"batch_size": sequences, "micro_batch_size": sequences}
        with prepared("tiny" if tiny else shape, length, sequences * steps, **flags) as job:
            estimated = estimate(job).peak
            if estimated > USABLE * total:
                continue
            model = meta_model(job.data.source)
            write(
                {
                    "shape": "tiny" if tiny else shape,
                    "parameters": sum(parameter.numel() for parameter in model.parameters()),
                    "flags": flags,
                    "tokens_per_step": sequences * length,
                    "length": length,
                    "flops_per_token": flops_per_token(model.config, parameters_in_products(model), length),
                    "estimated_bytes": estimated,
                }
            )
            clock = Clock()
            metrics = train(job, steps)
            clock.handle.remove()
            write(
                {
                    "seconds": [b - a for a, b in pairwise(clock.wall)],
                    "losses": [json.loads(line)["loss"] for line in metrics.read_text().splitlines()],
                    "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
                }
            )
            return
    raise Skip(f"does not fit: {estimated / GIB:.0f} GiB estimated for one sequence, the device has {total / GIB:.0f}")
