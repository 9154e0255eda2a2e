"""Record the order of a training step under `fully_shard` on two ranks, for each way of wrapping pocket-base.

    python -m ftcourse.studies.fsdp_step
    python -m ftcourse.studies.fsdp_step --output mine.json

Rank 0's events are stored in their order, without times. Under a minute on two cores.
"""

import json
import os
import sys
from dataclasses import astuple
from pathlib import Path

import torch
from torch import nn

from ftcourse.fsdp_steps import APART, WRAPPINGS, prefetch_forward, record_step, unit_bytes, wrap
from ftcourse.runs import torchrun
from ftkit import load_base
from ftkit.distributed.launch import run_distributed
from ftkit.distributed.mesh import DistributedContext
from ftkit.models import data_dir

from .records import make_repeatable, study_parser

PREFETCHED = f"{APART}, forward prefetch"
RANKS = 2


def batch() -> torch.Tensor:
    return torch.arange(64).view(2, 32)  # (B, T)


def build(name: str, mesh) -> nn.Module:
    """pocket-base, wrapped as `name` says: one of WRAPPINGS, or PREFETCHED."""
    model = wrap(load_base(data_dir() / "pocket-base")[0], mesh, APART if name == PREFETCHED else name)
    return prefetch_forward(model) if name == PREFETCHED else model


def record(name: str, mesh) -> dict:
    """The events of the second step and the bytes of each unit, as JSON has them."""
    model = build(name, mesh)

    def step() -> None:
        model(input_ids=batch(), labels=batch(), use_cache=False).loss.backward()

    step()
    sizes = unit_bytes(model, APART if name == PREFETCHED else name)
    return {"bytes": sizes, "events": [list(astuple(event)) for event in record_step(model, step)]}


def main() -> None:
    """Without torchrun: start the ranks. Under it: record."""
    parser = study_parser("fsdp_step", __doc__)
    parser.set_defaults(output=data_dir() / "results" / "fsdp_step.json")
    output: Path = parser.parse_args().output

    def ranks(context: DistributedContext) -> None:
        make_repeatable()
        steps = {name: record(name, context.mesh) for name in (*WRAPPINGS, PREFETCHED)}
        if context.is_main_process:
            lines = {name: json.dumps(step) for name, step in steps.items()}
            body = ",\n".join(f"  {json.dumps(name)}: {line}" for name, line in lines.items())
            head = f'"model": "pocket-base", "ranks": {RANKS}, "torch": "{torch.__version__.split("+")[0]}"'
            output.write_text(f'{{{head}, "steps": {{\n{body}\n}}}}\n', encoding="utf-8")

    if "RANK" in os.environ:
        run_distributed(ranks)
    else:
        torchrun("-m", "ftcourse.studies.fsdp_step", *sys.argv[1:], ranks=RANKS)


if __name__ == "__main__":
    main()
