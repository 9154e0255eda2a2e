"""What the ranks of test_checkpoint run: `python checkpoint_ranks.py FOLDER MODE RANKS`.

Rank 0 writes what it found to `FOLDER/MODE.json`.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import FileSystemWriter

from ftkit.distributed import fsdp, mesh
from ftkit.distributed.checkpoint import Checkpoints
from ftkit.distributed.launch import run_forked
from tests.tiny import foreign_model

STEPS, SAVED = 6, 3
ABOUT = {"model": "foreign", "optimizer": "adamw"}


def build(context: mesh.DistributedContext, seed: int = 0):
    """A model (sharded where there are several ranks) and its optimizer."""
    model = foreign_model(torch.float32, seed)
    if context.is_distributed:
        fsdp.apply_fsdp(model, context.mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def steps(
    context: mesh.DistributedContext, model, optimizer, first: int, last: int, after=lambda step: None
) -> list[float]:
    """Train on four rows a step, shared among the ranks; the loss of each step."""
    losses = []
    for step in range(first, last):
        ids = torch.randint(0, 300, (4, 12), generator=torch.Generator().manual_seed(step))  # (B, T)
        mine = ids[context.rank :: context.world_size]
        loss = model(input_ids=mine, labels=mine).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(context.sum(loss.item()) / context.world_size)
        after(step + 1)
    return losses


def everywhere(context: mesh.DistributedContext, action) -> list[str]:
    """What `action` raised on each rank."""
    said, mine = [None] * context.world_size, ""
    try:
        action()
    except Exception as error:
        mine = f"{type(error).__name__}: {error}"
    dist.all_gather_object(said, mine)
    return said


def write(context: mesh.DistributedContext, folder: Path) -> dict:
    """Train and save; then every refusal, and a rank that cannot write."""
    model, optimizer = build(context)
    checkpoints = Checkpoints(folder / "written", ABOUT, context)
    losses = steps(
        context,
        model,
        optimizer,
        0,
        STEPS,
        lambda step: step == SAVED and checkpoints.save(step, model, optimizer, {"note": "kept"}),
    )
    checkpoints.finish()
    if context.is_main_process:
        shutil.copytree(folder / "written", folder / "kept" / "written")
    result = {"losses": losses, "resumed": resume(context, folder)["losses"]}

    fresh = build(context, seed=3)
    before = [p.full_tensor().clone() for p in fresh[0].parameters()]
    other = {**ABOUT, "optimizer": "child-tuning task-free"}
    result["other optimizer"] = everywhere(
        context, lambda: Checkpoints(folder / "written", other, context).load(*fresh, {"note": ""})
    )
    if context.is_main_process:
        shutil.copytree(folder / "written", folder / "torn")
        (folder / "torn" / "step-000003" / "__1_0.distcp").unlink()
    context.barrier()
    result["missing shard"] = everywhere(
        context, lambda: Checkpoints(folder / "torn", ABOUT, context).load(*fresh, {"note": ""})
    )
    after = [p.full_tensor() for p in fresh[0].parameters()]
    result["unchanged"] = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    true = FileSystemWriter.write_data
    if context.rank == 1:
        FileSystemWriter.write_data = full_disk
    full = Checkpoints(folder / "written", ABOUT, context)
    result["saving"] = everywhere(context, lambda: full.save(STEPS, model, optimizer, {"note": ""}))
    result["full disk"] = everywhere(context, full.finish)
    result["left"] = sorted(path.name for path in (folder / "written").iterdir())
    FileSystemWriter.write_data = true
    full.save(STEPS, model, optimizer, {"note": ""})
    full.finish()
    context.barrier()
    result["later"] = sorted(path.name for path in (folder / "written").iterdir())
    return result


def full_disk(*_):
    raise OSError(28, "No space left on device")


def resume(context: mesh.DistributedContext, folder: Path) -> dict:
    """Start from other weights, load, and go on."""
    model, optimizer = build(context, seed=5)
    saved = Checkpoints(folder / "written", ABOUT, context).load(model, optimizer, {"note": ""})
    return {"losses": steps(context, model, optimizer, saved["step"], STEPS), "extra": saved}


if __name__ == "__main__":
    folder, mode = Path(sys.argv[1]), sys.argv[2]

    def main(context: mesh.DistributedContext) -> None:
        result = {"write": write, "resume": resume}[mode](context, folder)
        if context.is_main_process:
            (folder / f"{mode}.json").write_text(json.dumps(result))

    run_forked(main, int(sys.argv[3]))
