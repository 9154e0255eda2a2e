"""What one rank of the distributed tests does: `python ranks.py CASE FOLDER`, with torchrun's variables set.

Not a test module itself: `test_distributed.py` starts it, and compares what rank 0 leaves in FOLDER.
"""

import os
import sys
import zlib
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from ftkit._compat import local_chunk
from ftkit.child_tuning import (
    ChildTuningAdamW,
    fisher_information,
    gradient_mask,
    optimizer,
    save_masks,
    top_fraction_masks,
)
from ftkit.dtensor import Region

STEPS, RESUMED_AT = 6, 3


class Small(torch.nn.Module):
    """Odd sizes: on two and on four ranks some shards are shorter than others, and some are empty."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up = torch.nn.Linear(6, 14)
        self.down = torch.nn.Linear(14, 6)
        self.head = torch.nn.Linear(6, 5)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.head(self.down(self.up(x).tanh())) * self.scale


def build(model: torch.nn.Module, mode: str = "task-free", **options) -> ChildTuningAdamW:
    masks = None
    if mode == "task-dependent":
        masks = {n: gradient_mask(p.shape, 0.3, seed=9, step=0, name=n) for n, p in model.named_parameters()}
    options |= {"mode": mode, "gradient_mask": masks, "weight_decay": 0.1}
    return ChildTuningAdamW(model.named_parameters(), lr=0.05, reserve_p=0.4, seed=2, **options)


def set_gradients(model: torch.nn.Module, step: int) -> None:
    """The same gradients however the model is sharded, by autograd: that of sum(weight * g) is g."""
    model.zero_grad()
    for name, param in model.named_parameters():
        seed = zlib.crc32(f"{name.removeprefix('module.')} {step}".encode())
        g = torch.randn(param.shape, generator=torch.Generator().manual_seed(seed))
        (whole(param) * g).sum().backward()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def train(model, opt, first: int, last: int) -> dict[str, torch.Tensor]:
    """Steps `first + 1` to `last`: each step's masks and the last weights, put together from all ranks."""
    results = {}
    for step in range(first + 1, last + 1):
        set_gradients(model, step)
        before = {param: whole(state["exp_avg"]).clone() for param, state in opt.state.items()}
        opt.step()
        for name, param in model.named_parameters():
            # A masked entry's first moment only fades. Gradients are far from zero next to rounding.
            change = whole(opt.state[param]["exp_avg"]) - 0.9 * before.get(param, torch.zeros(param.shape))
            results[f"mask {step} {name}"] = change.abs() > 1e-6
    for name, param in model.named_parameters():
        results[f"weight {name}"] = whole(param).detach().clone()
    return results


def shard_fsdp(model) -> None:
    fully_shard(model.up)
    fully_shard(model)


def shard_2d(model) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    parallelize_module(model, mesh["tp"], plan)
    for part in (model.up, model.down):
        fully_shard(part, mesh=mesh["fsdp"])
    fully_shard(model, mesh=mesh["fsdp"])


def run_sharded(shard, folder: Path) -> dict[str, torch.Tensor]:
    model = Small()
    shard(model)
    opt = build(model)
    results = train(model, opt, 0, RESUMED_AT)
    model_state, opt_state = get_state_dict(model, opt)
    dcp.save({"model": model_state, "optimizer": opt_state}, checkpoint_id=folder / "checkpoint")
    return results | train(model, opt, RESUMED_AT, STEPS)


def resume(model, opt, folder: Path) -> dict[str, torch.Tensor]:
    """Go on from the checkpoint in `folder`, however many ranks have written it."""
    model_state, opt_state = get_state_dict(model, opt)
    state = {"model": model_state, "optimizer": opt_state}
    dcp.load(state, checkpoint_id=folder / "checkpoint")
    set_state_dict(model, opt, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return train(model, opt, RESUMED_AT, STEPS)


def resume_sharded(shard, folder: Path) -> dict[str, torch.Tensor]:
    model = Small()
    shard(model)
    return resume(model, build(model), folder)


def run_task_dependent(shard, compact: bool, folder: Path) -> dict[str, torch.Tensor]:
    """Train, save, and go on from what was saved with a new optimizer that was given no such state."""
    model = Small()
    shard(model)
    opt = build(model, "task-dependent", compact_state=compact)
    train_task_dependent(model, opt, 0, RESUMED_AT)
    model_state, opt_state = get_state_dict(model, opt)
    dcp.save({"model": model_state, "optimizer": opt_state}, checkpoint_id=folder / f"child{compact}")
    return resume_task_dependent(model, compact, folder)


def resume_task_dependent(model, compact: bool, folder: Path) -> dict[str, torch.Tensor]:
    opt = build(model, "task-dependent", compact_state=not compact)
    model_state, opt_state = get_state_dict(model, opt)
    state = {"model": model_state, "optimizer": opt_state}
    dcp.load(state, checkpoint_id=folder / f"child{compact}")
    set_state_dict(model, opt, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return train_task_dependent(model, opt, RESUMED_AT, STEPS)


def train_task_dependent(model, opt, first: int, last: int) -> dict[str, torch.Tensor]:
    for step in range(first + 1, last + 1):
        set_gradients(model, step)
        opt.step()
    return {f"weight {name}": whole(param).detach().clone() for name, param in model.named_parameters()}


def fisher_batches() -> list[torch.Tensor]:
    return list(torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(5)))


def fisher_loss(model, batch):
    return model(batch).square().sum()


@torch.no_grad()
def tied_scores(scores: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scores of three values only, so that the threshold lies among equal ones, on several processes."""
    return {name: (score > 5).float() + (score > 50).float() + 1 for name, score in scores.items()}


def run_fisher(shard, folder: Path) -> dict[str, torch.Tensor]:
    """Information and masks, put together; saved in between; and two faults that must not pass."""
    model = Small()
    shard(model)
    scores = fisher_information(model, fisher_batches(), loss=fisher_loss)
    masks = top_fraction_masks(scores, 0.3)
    save_masks(masks, folder / "child.safetensors")
    results = {f"score {name}": whole(score) for name, score in scores.items()}
    results |= {f"mask {name}": whole(mask) for name, mask in masks.items()}
    for name, score in tied_scores(scores).items():
        results[f"tied {name}"] = whole(score)
    results |= {f"tied mask {name}": whole(mask) for name, mask in top_fraction_masks(tied_scores(scores), 0.3).items()}
    reduce = dist.all_reduce
    dist.all_reduce = lambda tensor: None  # every process finds a threshold of its own
    results |= {f"own {name}": whole(mask) for name, mask in top_fraction_masks(scores, 0.3).items()}
    dist.all_reduce = reduce
    mine = torch.full((1, 6), float(dist.get_rank()))
    for batches in ([mine], [torch.ones(1, 6)] * (1 + dist.get_rank())):
        try:
            fisher_information(model, batches, loss=fisher_loss)
        except ValueError as error:
            assert "give all of them the same" in str(error)
        else:
            raise AssertionError("processes with different batches were accepted")
    return results


def run_replicated(folder: Path) -> dict[str, torch.Tensor]:
    """DDP on different data; every replica must end with the same weights, to the bit."""
    model = torch.nn.parallel.DistributedDataParallel(Small())
    opt = build(model)
    torch.manual_seed(100 + dist.get_rank())
    for _ in range(STEPS):
        opt.zero_grad()
        model(torch.randn(4, 6)).square().mean().backward()
        opt.step()
    mine = torch.cat([param.detach().view(-1) for param in model.parameters()])
    replicas = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(replicas, mine)
    return {"replicas": torch.stack(replicas)}


def run_partial(folder: Path) -> dict[str, torch.Tensor]:
    """A gradient that comes as parts of a sum is summed before it is used, and left as it came."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    weight = torch.nn.Parameter(DTensor.from_local(torch.zeros(50), mesh, [Replicate()], run_check=False))
    weight.grad = DTensor.from_local(torch.full((50,), dist.get_rank() + 1.0), mesh, [Partial()], run_check=False)
    opt = ChildTuningAdamW([("w", weight)], betas=(0.0, 0.999), reserve_p=0.5)
    opt.step()
    assert isinstance(weight.grad.placements[0], Partial)
    return {"exp_avg": whole(opt.state[weight]["exp_avg"])}


def run_chunks(folder: Path) -> dict[str, torch.Tensor]:
    """Where torch says a shard lies must be where its numbers are found in the whole."""
    model = Small()
    (shard_2d if dist.get_world_size() == 4 else shard_fsdp)(model)
    for name, param in model.named_parameters():
        sizes, offsets = local_chunk(param)
        part = whole(param)[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))]
        assert torch.equal(part, param.to_local()), name
    return {}


def run_flattened(folder: Path) -> dict[str, torch.Tensor]:
    """Parameters of the first FSDP are flat pieces of no known place: refused by name."""
    model = FullyShardedDataParallel(Small(), device_id=torch.device("cpu"), use_orig_params=True)
    try:
        build(model)
    except ValueError as error:
        assert "FSDP2" in str(error)
        return {}
    raise AssertionError("a flattened parameter was accepted")


def run_mutated(folder: Path) -> dict[str, torch.Tensor]:
    """The fault that this is all about: every shard takes the mask of the whole's beginning."""
    region = optimizer.local_region
    optimizer.local_region = lambda tensor: Region(region(tensor).shape)
    model = Small()
    shard_fsdp(model)
    results = train(model, build(model), 0, 1)
    optimizer.local_region = region
    return results


CASES = {
    "fsdp": lambda folder: run_sharded(shard_fsdp, folder),
    "2d": lambda folder: run_sharded(shard_2d, folder),
    "resume fsdp": lambda folder: resume_sharded(shard_fsdp, folder),
    "resume 2d": lambda folder: resume_sharded(shard_2d, folder),
    "child fsdp": lambda folder: run_task_dependent(shard_fsdp, False, folder),
    "child fsdp compact": lambda folder: run_task_dependent(shard_fsdp, True, folder),
    "child 2d": lambda folder: run_task_dependent(shard_2d, False, folder),
    "child 2d compact": lambda folder: run_task_dependent(shard_2d, True, folder),
    "fisher fsdp": lambda folder: run_fisher(shard_fsdp, folder),
    "fisher 2d": lambda folder: run_fisher(shard_2d, folder),
    "chunks": run_chunks,
    "flattened": run_flattened,
    "mutated": run_mutated,
    "ddp": run_replicated,
    "partial": run_partial,
}


def main() -> None:
    cases, folder = sys.argv[1].split(","), Path(sys.argv[2])
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    for case in cases:
        results = CASES[case](folder)
        if dist.get_rank() == 0:
            torch.save(results, folder / f"{case}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # with a device mesh alive, gloo's threads can abort an ordinary exit
