"""Estimate the memory of published models on 1 to 1,024 GPUs, and store it for notebook 12.

    python -m ftcourse.studies.memory_plans

Nothing is loaded and nothing is run on a GPU: every figure is an estimate. Some minutes on two cores.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from ftkit.memory import Estimate, MemoryPlan, published_meta_model
from ftkit.memory.estimate import combine, persistent_bytes
from ftkit.memory.step import apply_method
from ftkit.memory.trace import Trace, trace
from ftkit.models import data_dir

MODELS = ("llama-3-8b", "llama-3-70b", "llama-3-405b")
GPUS = (1, 8, 64, 256, 1024)
TRACED_ON = 8  # ranks; other numbers follow from it (`on_ranks`)
BASE = MemoryPlan(compute_dtype="bfloat16", micro_batch_size=2, max_length=2048, kernel="foreach")
METHODS = {
    "full": {},
    "child-tuning, compact, 10 %": {"method": "child-tuning", "child_state": "compact", "reserve_p": 0.1},
    "LoRA, r = 16": {"method": "lora", "options": {"r": 16}, "param_dtype": "bfloat16"},
}
CHANGES = {  # one after the other, each on top of those before
    "as planned": {},
    "activation checkpointing": {"activation_checkpointing": True},
    "AdamW's fused kernel": {"kernel": "fused"},
    "the loss in chunks of 512 tokens": {"loss_chunk": 512},
}


def plan_of(method: str, gpus: int, changes: int) -> MemoryPlan:
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


def on_ranks(traced: Trace, shards: int) -> Trace:
    """A trace of TRACED_ON ranks scaled to another number: shards shrink, unsharded weights and activations stay.

    Left out: reduced gradients on their way into shards, and padding of dimensions that the ranks do not divide. One
    rank has no all-gathers.
    """

    def scaled(split: dict[str, int]) -> dict[str, int]:
        factors = {"weights": TRACED_ON / shards, "gradients": TRACED_ON / shards}
        if shards == 1:
            factors |= {"unsharded": 0, "communication": 0}
        return {kind: round(size * factors.get(kind, 1)) for kind, size in split.items()}

    return Trace({part: scaled(split) for part, split in traced.parts.items()}, traced.traffic)


def rows(name: str, method: str, traces: dict) -> list[dict]:
    """Every change on every number of GPUs for one model and method; optimizers share a trace."""
    found = []
    for changes in range(len(CHANGES)):
        traced_plan = plan_of(method, TRACED_ON, changes)
        model = apply_method(published_meta_model(name), traced_plan)
        adapter = traced_plan.method == "lora"
        key = (name, adapter, traced_plan.activation_checkpointing, traced_plan.loss_chunk)
        if key not in traces:
            traces[key] = trace(model, traced_plan)
        for gpus in GPUS:
            plan = plan_of(method, gpus, changes)
            estimate = combine(model, plan, persistent_bytes(model, plan), on_ranks(traces[key], gpus))
            found.append(row(name, method, gpus, changes, estimate))
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ftcourse.studies.memory_plans",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    output = data_dir() / "results" / "memory_plans.json"
    parser.add_argument("--output", type=Path, default=output, help="where to store it (%(default)s)")
    given = parser.parse_args(arguments)
    settings, traces = [(model, method) for model in MODELS for method in METHODS], {}
    found = [line for setting in tqdm(settings, desc="memory plans") for line in rows(*setting, traces)]
    given.output.write_text("[\n" + ",\n".join(map(json.dumps, found)) + "\n]\n")
    print(f"{len(found)} estimates stored in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
