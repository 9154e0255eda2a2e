"""Estimate published models on 1 to 1,024 GPUs, and store what notebook 12's control draws.

    python -m ftkit.studies.memory_plans

Nothing is loaded and nothing is run on a GPU: every figure is an estimate. Some minutes on two cores.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from ftkit.almanac import data_dir
from ftkit.memory import Estimate, Plan, estimate_memory, named_model

MODELS = ("llama-3-8b", "llama-3-70b", "llama-3-405b")
GPUS = (1, 8, 64, 1024)
BASE = Plan(compute="bfloat16", micro_batch_size=2, max_length=2048, kernel="foreach")
METHODS = {
    "full": {},
    "child-tuning, compact, 10 %": {"method": "child-tuning", "child_state": "compact", "reserve_p": 0.1},
    "LoRA, r = 16": {"method": "lora", "options": {"r": 16}, "weights": "bfloat16"},
}
CHANGES = {  # one after the other, each on top of those before
    "as planned": {},
    "activation checkpointing": {"activation_checkpointing": True},
    "AdamW's fused kernel": {"kernel": "fused"},
    "the loss in chunks of 512 tokens": {"loss_chunk": 512},
}


def plan_of(method: str, gpus: int, changes: int) -> Plan:
    """The plan of a method on `gpus` GPUs under `fully_shard`, with the first `changes` of CHANGES after the plan."""
    plan = replace(BASE, mesh=(1, gpus, 1), **METHODS[method])
    for change in list(CHANGES.values())[: changes + 1]:
        plan = replace(plan, **change)
    return plan


def row(model: str, method: str, gpus: int, changes: int, found: Estimate) -> dict:
    return {
        "model": model,
        "method": method,
        "gpus": gpus,
        "change": list(CHANGES)[changes],
        "peak": found.peak,
        "phase": found.phase,
        "at_peak": found.at_peak,
        "sent": sum(found.communication.values()),
    }


def rows(model: str, gpus: int) -> list[dict]:
    """Every method and change for one model on one number of GPUs; plans that differ in the optimizer share a trace."""
    empty, found, traces = named_model(model), [], {}
    for method in METHODS:
        for changes in range(len(CHANGES)):
            plan = plan_of(method, gpus, changes)
            key = (plan.method == "lora", plan.activation_checkpointing, plan.loss_chunk)
            estimate = estimate_memory(empty, plan, traced=traces.get(key))
            traces[key] = estimate.traced
            found.append(row(model, method, gpus, changes, estimate))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ftkit.studies.memory_plans",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    output = data_dir() / "results" / "memory_plans.json"
    parser.add_argument("--output", type=Path, default=output, help="where to store it (%(default)s)")
    given = parser.parse_args(arguments)
    settings = [(model, gpus) for model in MODELS for gpus in GPUS]
    found = [line for setting in tqdm(settings, desc="memory plans") for line in rows(*setting)]
    given.output.write_text("[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n")
    print(f"{len(found)} estimates stored in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
