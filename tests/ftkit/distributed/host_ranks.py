"""What each rank of test_two_hosts runs: `host_ranks.py FOLDER [trouble]`; a small model, trained and checkpointed.

With trouble, rank 3 ends itself with SIGKILL in step 2, and in step 5 waits until its whole host is lost, each once.
"""

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from ftkit.distributed import launch, mesh
from ftkit.distributed.checkpoint import Checkpoints, full_state_dict

STEPS, KILLED, HOST_LOST = 8, 2, 5


def first_time(marker: Path) -> bool:
    there = marker.exists()
    marker.touch()
    return not there


def main(context: mesh.DistributedContext) -> None:
    folder, trouble = Path(sys.argv[1]), sys.argv[2:] == ["trouble"]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    fully_shard(model, mesh=context.mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    checkpoints = Checkpoints(folder / "checkpoints", {"optimizer": "adamw"}, context)
    first = checkpoints.load(model, optimizer, {})["step"] if checkpoints.latest() else 0
    if context.is_main_process:
        with (folder / "attempts").open("a") as file:
            file.write(f"{first}\n")
    for step in range(first, STEPS):
        rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))[context.rank :: context.world_size]
        loss = model(rows).square().mean()
        if trouble and context.rank == 3:
            if step == KILLED and first_time(folder / "killed"):
                os.kill(os.getpid(), signal.SIGKILL)
            if step == HOST_LOST and first_time(folder / "host-lost"):
                time.sleep(600)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        checkpoints.save(step + 1, model, optimizer, {})
    checkpoints.finish()
    weights = full_state_dict(model)
    if context.is_main_process:
        text = json.dumps({name: tensor.tolist() for name, tensor in weights.items()})
        (folder / "weights.json").write_text(text)


if __name__ == "__main__":
    launch.run_distributed(main, timeout=timedelta(seconds=60))
