"""What the ranks of test_fsdp.py run: `python fsdp_ranks.py FOLDER RANKS`; rank 0 writes `FOLDER/fsdp.json`.

Each case compares with one process that sees the whole batch, and says how far apart they are; beside it stands the
same comparison with something broken on purpose.
"""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ftcourse.instruments import CountCollectives
from ftkit._modules import decoder_layers
from ftkit.distributed import mesh
from ftkit.distributed.fsdp import apply_fsdp
from ftkit.distributed.launch import run_forked
from tests.tiny import foreign_model

INPUT_IDS = torch.randint(0, 200, (8, 12), generator=torch.Generator().manual_seed(1))  # (B, T)
BLOCK = type(foreign_model().model.layers[0])
WRAPPER = "_checkpoint_wrapped_module."


def plain() -> nn.Module:
    return foreign_model(torch.float32)


def loss_of(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return model(input_ids=rows, labels=rows, use_cache=False).loss


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """Whole gradients by name, wrapper prefixes removed."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
            found[name.removeprefix("module.").replace(WRAPPER, "")] = grad
    return found


def times(factor: float, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: factor * tensor for name, tensor in tensors.items()}


def apart(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest difference, relative to the largest entry of each tensor; infinite where names differ."""
    if found.keys() != wanted.keys():
        return float("inf")
    return max(((found[n] - wanted[n]).abs().max() / wanted[n].abs().max()).item() for n in wanted)


def gathered_bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters() if not isinstance(p, DTensor))


def peak_gathered(model: nn.Module, rows: torch.Tensor) -> int:
    """The most bytes of whole parameters that are here at once in a forward pass."""
    seen = []
    leaves = [m for m in model.modules() if isinstance(m, nn.Linear)]
    hooks = [m.register_forward_hook(lambda *_: seen.append(gathered_bytes(model))) for m in leaves]
    with torch.no_grad():
        loss_of(model, rows)
    for hook in hooks:
        hook.remove()
    return max(seen)


def counts(model: nn.Module, rows: torch.Tensor) -> dict[str, int]:
    with CountCollectives() as mode:
        loss_of(model, rows).backward()
    return dict(mode.counts)


def freeze_mlps(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" not in name)
    return model


def checkpointed(model: nn.Module) -> nn.Module:
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, BLOCK))
    return model


def cases(device_mesh: DeviceMesh, rank: int, world_size: int) -> dict:
    mine = INPUT_IDS.chunk(world_size)[rank]
    alone = plain()
    whole_loss = loss_of(alone, INPUT_IDS)
    whole_loss.backward()
    wanted = gradients(alone)

    def compare(model: nn.Module, wanted: dict = wanted) -> dict:
        found = gradients(model)  # gathered once: that takes longest
        return {
            "apart": apart(found, wanted),
            "sum_for_mean": apart(times(world_size, found), wanted),
            "one_percent": apart(times(1.01, found), wanted),
        }

    def backward(model: nn.Module) -> nn.Module:
        loss_of(model, mine).backward()
        return model

    sharded = apply_fsdp(plain(), device_mesh)
    states = [gathered_bytes(sharded)]
    layer = decoder_layers(sharded)[0]
    hook = layer.mlp.register_forward_hook(lambda *_: states.append(gathered_bytes(layer)))
    backward(sharded)
    hook.remove()
    states.append(gathered_bytes(layer))

    result = {
        "ddp": compare(backward(DistributedDataParallel(plain()))),
        "per_layer": compare(sharded),
        "whole_model": compare(backward(fully_shard(plain(), mesh=device_mesh))),
        "before_in_after": states,
        "layer_bytes": sum(p.numel() * 4 for p in decoder_layers(alone)[0].parameters()),
        "all_bytes": sum(p.numel() * 4 for p in alone.parameters()),
    }
    # After a forward pass without a backward one the root stays gathered, so this comes after its gradients.
    result["loss_apart"] = abs(average(loss_of(sharded, mine).item(), world_size) - whole_loss.item())

    whole = fully_shard(plain(), mesh=device_mesh)
    fine = apply_fsdp(plain(), device_mesh)
    result["counts"] = {"whole": counts(whole, mine), "layer": counts(fine, mine)}
    result["peak"] = {"whole": peak_gathered(whole, mine), "layer": peak_gathered(fine, mine)}

    for moment, prepare in {
        "checkpoint_before": lambda: apply_fsdp(checkpointed(plain()), device_mesh),
        "checkpoint_after": lambda: checkpointed(apply_fsdp(plain(), device_mesh)),
    }.items():
        result[moment] = compare(backward(prepare()))

    result["clipping"] = clipping(alone, backward(apply_fsdp(plain(), device_mesh)), wanted)
    result["accumulation"] = accumulation(lambda: apply_fsdp(plain(), device_mesh), mine, compare)

    freeze_mlps(alone).zero_grad()
    loss_of(alone, INPUT_IDS).backward()
    mixed = backward(apply_fsdp(freeze_mlps(plain()), device_mesh))
    result["frozen"] = compare(mixed, gradients(alone))
    result["frozen_against_all"] = apart(gradients(mixed), wanted)

    late = plain()
    optimizer = torch.optim.SGD(late.parameters(), lr=1.0)
    apply_fsdp(late, device_mesh)
    before = [p.to_local().clone() for p in late.parameters()]
    backward(late)
    optimizer.step()
    result["optimizer_before_shard_moves"] = any(
        not torch.equal(a, p.to_local()) for a, p in zip(before, late.parameters(), strict=True)
    )
    result |= mixed_precision(device_mesh, mine, whole_loss.item(), world_size)
    return result


def clipping(alone: nn.Module, sharded: nn.Module, wanted: dict) -> dict:
    local = torch.stack([p.grad.to_local().norm() for p in sharded.parameters()]).norm()
    norm = nn.utils.clip_grad_norm_(sharded.parameters(), 0.1).full_tensor().item()
    for parameter, grad in zip(alone.parameters(), wanted.values(), strict=True):
        parameter.grad = grad.clone()
    alone_norm = nn.utils.clip_grad_norm_(alone.parameters(), 0.1).item()
    clipped = gradients(sharded)
    return {
        "norm_apart": abs(norm / alone_norm - 1),
        "own_shards_apart": abs(local.item() / alone_norm - 1),
        "apart": apart(clipped, gradients(alone)),
        "unclipped": apart(clipped, wanted),
    }


def accumulation(build: Callable[[], nn.Module], mine: torch.Tensor, compare: Callable) -> dict:
    """Two micro-batches: one reduction at the end, one for each, and (broken) none at all."""
    found = {}
    for name, syncs in {"last": [False, True], "each": [True, True], "never": [False, False]}.items():
        model = build()
        with CountCollectives() as mode:
            for rows, sync in zip(mine.chunk(2) if len(mine) > 1 else [mine, mine], syncs, strict=True):
                model.set_requires_gradient_sync(sync)
                (loss_of(model, rows) / 2).backward()
        reductions = sum(n for op, n in mode.counts.items() if op == "reduce_scatter")
        found[name] = compare(model) | {"reductions": reductions}
    return found


def mixed_precision(device_mesh: DeviceMesh, mine: torch.Tensor, alone: float, world_size: int) -> dict:
    """dtypes inside a layer under a policy and under autocast, and how far the losses are from float32's."""
    found = {}
    reference = apply_fsdp(plain(), device_mesh)
    for name in ("policy", "autocast"):
        model = plain()
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for module in [*decoder_layers(model), model]:
            fully_shard(module, mesh=device_mesh, **({"mp_policy": policy} if name == "policy" else {}))
        seen = {}

        def look(module, inputs, output, seen=seen):
            seen.update(weight=str(module.weight.dtype), input=str(inputs[0].dtype), output=str(output.dtype))

        layer = decoder_layers(model)[1]
        layer.mlp.gate_proj.register_forward_hook(look)
        layer.register_forward_hook(lambda m, i, out, seen=seen: seen.update(residual=str(getattr(out, "dtype", ""))))
        with torch.autocast("cpu", torch.bfloat16) if name == "autocast" else nullcontext():
            loss = loss_of(model, mine)
        loss.backward()
        parameter = layer.mlp.gate_proj.weight
        seen.update(kept=str(parameter.dtype), grad=str(parameter.grad.dtype))
        seen["loss_apart"] = abs(average(loss.item(), world_size) - alone)
        loss_of(reference, mine).backward()
        seen["apart"] = apart(gradients(model), gradients(reference))
        reference.zero_grad()
        found[name] = seen
    return found


def average(value: float, world_size: int) -> float:
    total = torch.tensor(value)
    dist.all_reduce(total)
    return total.item() / world_size


if __name__ == "__main__":
    folder = Path(sys.argv[1])

    def main(context: mesh.DistributedContext) -> None:
        device_mesh = context.mesh
        if device_mesh is None:  # a single rank has no process group of its own accord
            dist.init_process_group("gloo")
            device_mesh = init_device_mesh("cpu", (1,))
        result = cases(device_mesh, context.rank, context.world_size)
        if context.is_main_process:
            (folder / "fsdp.json").write_text(json.dumps(result))
        if not context.is_distributed:
            dist.destroy_process_group()

    run_forked(main, int(sys.argv[2]))
