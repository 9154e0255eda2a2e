"""Estimate the memory of the plans that notebook 16 chooses from, and store them.

    python -m ftcourse.studies.launch_plans

Nothing is loaded and nothing is run on a GPU. A minute on one core. A record is a plan: its `model`, its
`change`s to BASE, and of `ftkit.memory`'s estimate the `peak` in bytes, its `phase`, `at_peak` by kind, and the bytes
that a rank `sent` in a step of one micro-batch.
"""

import argparse
import json
import logging
import sys
import warnings
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from ftkit.finetune.config import Config
from ftkit.finetune.lora import lora_options
from ftkit.memory import MemoryPlan, estimate_memory, published_meta_model
from ftkit.models import data_dir

SMALL, LARGE = "llama-3-8b", "llama-3-70b"
CAPACITY = 80 * 2**30  # bytes of a GPU
BASE = MemoryPlan(compute_dtype="bfloat16", micro_batch_size=2, max_length=2048, packing=True, kernel="fused")
CHECKPOINTING = {"activation_checkpointing": True}
LORA = {"method": "lora", "options": lora_options(Config("", lora_r=16, lora_alpha=32.0)), "param_dtype": "bfloat16"}
FREE = {"optimizer": "child-tuning", "kernel": "foreach"}
FISHER = {**FREE, "child_state": "compact", "reserve_p": 0.1}
NODE, NODES = {"mesh": (1, 8, 1)}, {"mesh": (1, 32, 1)}
SEVERAL = {"accumulation": 2}  # micro-batches; more need no more memory
WHOLE = {**CHECKPOINTING, "micro_batch_size": 8}  # a step's sequences on one of 8 GPUs at once
PLANS = {  # a name that a table can show -> model, changes to BASE
    "8B, 1 GPU, full": (SMALL, {**CHECKPOINTING, "micro_batch_size": 1}),
    "8B, 1 GPU, LoRA": (SMALL, {**CHECKPOINTING, **SEVERAL, **LORA}),
    "8B, 8 GPUs, LoRA": (SMALL, {**NODE, **SEVERAL, **LORA}),
    "8B, 8 GPUs, full": (SMALL, {**NODE, **WHOLE}),
    "8B, 8 GPUs, child-tuning F": (SMALL, {**NODE, **WHOLE, **FREE}),
    "8B, 8 GPUs, child-tuning D, 10 %": (SMALL, {**NODE, **WHOLE, **FISHER}),
    "8B, 4 nodes, full": (SMALL, {"mesh": (4, 8, 1)}),
    "70B, 1 GPU, LoRA": (LARGE, {**CHECKPOINTING, **SEVERAL, **LORA}),
    "70B, 8 GPUs, LoRA": (LARGE, {**NODE, **CHECKPOINTING, **SEVERAL, **LORA}),
    "70B, 8 GPUs, full": (LARGE, {**NODE, **WHOLE}),
    "70B, 4 nodes, full": (LARGE, {**NODES, **CHECKPOINTING}),
    "8B full, no checkpointing": (SMALL, {**NODE, "micro_batch_size": 8}),
    "8B full, several micro-batches of 2": (SMALL, {**NODE, **SEVERAL}),
    "8B full, weights kept unsharded": (SMALL, {**NODE, **WHOLE, "reshard_after_forward": False}),
    "8B full, tensor parallel 2": (SMALL, {**WHOLE, "micro_batch_size": 16, "mesh": (1, 4, 2)}),
}
FILE = data_dir() / "results" / "launch_plans.json"


def plan_of(name: str) -> MemoryPlan:
    return replace(BASE, **PLANS[name][1])


def estimate(name: str) -> dict:
    """The record of a plan."""
    model, changes = PLANS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT and FSDP warn of names and views that do not concern an estimate
        found = estimate_memory(published_meta_model(model), plan_of(name))
    sent = sum(found.communication.values())
    record = {"model": model, "changes": changes, "peak": found.peak, "phase": found.phase}
    return json.loads(json.dumps({**record, "at_peak": found.at_peak, "sent": sent}))


def read_plans(path: Path = FILE) -> dict[str, dict]:
    """The records by name. Raises ValueError where a plan of PLANS was not recorded, or another one."""
    records = json.loads(path.read_text())
    for name, (model, changes) in PLANS.items():
        record = records.get(name, {})
        if (record.get("model"), record.get("changes")) != (model, json.loads(json.dumps(changes))):
            raise ValueError(f"{path} has no record of {name!r} as it is planned: run {__spec__.name} again")
    return {name: records[name] for name in PLANS}


def name_of(plan: MemoryPlan, model: str) -> str:
    """The name of a recorded plan. Raises ValueError for one that was not recorded."""
    for name in PLANS:
        if PLANS[name][0] == model and plan_of(name) == plan:
            return name
    raise ValueError(f"no estimate of {model} is stored for this plan: call ftkit.memory.estimate_memory")


def fits(peak: int, capacity: int = CAPACITY) -> bool:
    """Whether a peak leaves a tenth of the GPU for the CUDA context, libraries and fragmentation."""
    return peak <= 0.9 * capacity


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=FILE, help="where to store them (%(default)s)")
    given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    found = {name: estimate(name) for name in tqdm(PLANS, desc="launch plans")}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(record)}" for name, record in found.items())
    given.output.write_text(f"{{\n{lines}\n}}\n")
    print(f"{len(found)} estimates stored in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
