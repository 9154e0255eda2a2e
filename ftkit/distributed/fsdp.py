"""FSDP2, tensor parallelism with it, and torch.compile, applied to the decoder layers of a model."""

import shutil

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from ftkit._modules import decoder_layers

from .tensor_parallel import apply_tensor_parallel


def apply_fsdp(
    model: nn.Module, mesh: DeviceMesh, compute_dtype: torch.dtype = torch.float32, reshard_after_forward: bool = True
) -> nn.Module:
    """Apply `fully_shard` to each decoder layer, then to the root with the rest (embeddings, last norm, head).

    Build the optimizer afterwards, because one built before holds parameters that no longer train.

    Args:
        model: sharded in place; its parameters keep their dtype.
        mesh: of one dimension for FSDP; of two for HSDP, which shards along the second and replicates along the first.
        compute_dtype: of unsharded weights and activations; gradients are reduced in float32.
        reshard_after_forward: free a layer's unsharded weights after forward and all-gather them again in backward:
            less memory, 1.5 times the communication.
    """
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    # The root stays unsharded after forward (torch's default) because its backward follows at once.
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def apply_parallelism(
    model: nn.Module,
    mesh: DeviceMesh,
    tp_mesh: DeviceMesh | None,
    compute_dtype: torch.dtype = torch.float32,
    reshard_after_forward: bool = True,
) -> nn.Module:
    """Apply tensor parallelism over `tp_mesh`, if there is one, then FSDP over `mesh`."""
    if tp_mesh is not None:
        model = apply_tensor_parallel(model, tp_mesh)
    return apply_fsdp(model, mesh, compute_dtype, reshard_after_forward)


def apply_compile(model: nn.Module) -> None:
    """Compile the decoder layers in place, before they are sharded; names and weights stay."""
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)  # a batch of another length must not compile again


def check_compiler(device: torch.device) -> None:
    """Raise ValueError if there is no C++ compiler for what torch.compile generates."""
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise ValueError("--compile needs a C++ compiler on a CPU and found none: install g++, or leave --compile")
