"""The same batches of the same model through the program, TRL's SFTTrainer, and SFTTrainer with Liger's kernels.

All train float32 weights in bfloat16 arithmetic with fused AdamW, and start from the same random weights. TRL
recomputes activations by default and the program does not, so TRL also runs without.
"""

import importlib.util
import json
import tempfile
from itertools import pairwise

import torch

from experiments.real_model.worker import Clock

from .program import Job, prepared, random_model, train
from .records import Skip, Write

SIZES = {False: ("Llama-3.2-1B", 1024, 8, 14), True: ("tiny", 32, 2, 4)}  # by tiny: shape, tokens, sequences, steps
LR = 1e-5


def measure(device: torch.device, tiny: bool, write: Write, contender: str) -> None:
    if contender != "ftkit" and importlib.util.find_spec("trl") is None:
        raise Skip("TRL is not installed")
    if contender == "TRL with Liger" and importlib.util.find_spec("liger_kernel") is None:
        raise Skip("Liger is not installed: pip install -c constraints.txt -e '.[gpu]'")
    shape, length, sequences, steps = SIZES[tiny]
    flags = {"batch_size": sequences, "micro_batch_size": sequences, "lr": LR}
    with prepared(shape, length, sequences * steps, max_steps=steps, **flags) as job:
        clock = Clock()
        losses = _by_ftkit(job, steps) if contender == "ftkit" else _by_trl(job, steps, contender)
        clock.handle.remove()
    write(
        {
            "contender": contender,
            "shape": shape,
            "tokens_per_step": sequences * length,
            "seconds": [b - a for a, b in pairwise(clock.wall)],
            "cpu_seconds": [b - a for a, b in pairwise(clock.processor)],
            "losses": losses,
            "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        }
    )


def _by_ftkit(job: Job, steps: int) -> list[float]:
    return [json.loads(line)["loss"] for line in train(job, steps).read_text().splitlines()]


def _by_trl(job: Job, steps: int, contender: str) -> list[float]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config, on_gpu = job.run.config, job.context.device.type == "cuda"
    batches = job.batches
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=config.batch_size,
            max_length=config.max_length,
            learning_rate=config.lr,
            lr_scheduler_type=config.lr_scheduler_type,
            warmup_steps=round(config.warmup_ratio * steps),
            weight_decay=config.weight_decay,
            train_sampling_strategy="sequential",  # the program's batches in the program's order
            use_liger_kernel=contender == "TRL with Liger",
            bf16=job.run.compute_dtype == torch.bfloat16,
            use_cpu=not on_gpu,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=config.seed,
            **({"gradient_checkpointing": False} if "nothing recomputed" in contender else {}),
        )
        trainer = SFTTrainer(
            model=random_model(job.data.source, device=job.context.device),
            args=args,
            train_dataset=Dataset.from_list([row for step in range(steps) for row in batches[step]]),
            processing_class=job.data.tokenizer,
        )
        trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]
