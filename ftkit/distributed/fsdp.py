"""FSDP2: every rank keeps a slice of every parameter and gathers a layer only while it computes."""

import shutil

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from ftkit._modules import decoder_layers

from .tensor_parallel import apply_tensor_parallel


def apply_fsdp(
    model: nn.Module,
    mesh: DeviceMesh,
    compute_dtype: torch.dtype = torch.float32,
    reshard_after_forward: bool = True,
) -> nn.Module:
    """Shard each decoder layer, then the root with all that is left (embeddings, last norm, head).

    A mesh of one dimension is FSDP; with two, shards lie along the second and are repeated along the first (HSDP).
    With `reshard_after_forward` a layer's gathered weights are freed after forward and gathered again in backward:
    less memory, and half as much traffic again.

    Parameters stay in their dtype; gathered weights and activations use `compute_dtype`, and gradients are
    reduced in float32. Build the optimizer afterwards: one built before holds parameters that no longer train.
    """
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    # The root keeps what it gathered (torch's default): its backward pass begins as its forward pass ends.
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def apply_parallelism(
    model: nn.Module,
    mesh: DeviceMesh,
    tp_mesh: DeviceMesh | None,
    compute_dtype: torch.dtype = torch.float32,
    reshard_after_forward: bool = True,
) -> nn.Module:
    """Cut the matrices over `tp_mesh`, where there is one, then `shard` what each rank has over `mesh`.

    This is what `ftkit.finetune` does with a model, and `ftkit.memory` with an empty one.
    """
    if tp_mesh is not None:
        model = apply_tensor_parallel(model, tp_mesh)
    return apply_fsdp(model, mesh, compute_dtype, reshard_after_forward)


def apply_compile(model: nn.Module) -> None:
    """Compile the decoder layers of `model` in place, before they are sharded; names and weights stay.

    dynamic: batches differ in length, and a new length shall not compile again.
    """
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)


def check_compiler(device: torch.device) -> None:
    """Raise ValueError where nothing can compile what torch.compile writes."""
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise ValueError("--compile needs a C++ compiler on a CPU and found none: install g++, or leave --compile")
