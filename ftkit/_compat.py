"""The few calls into torch and transformers that their authors have not promised to keep, in one place.

Each has a test that fails when a new version changes what is relied on here.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from peft import PeftModel
from peft.tuners.adaption_prompt import AdaptedAttention
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def local_chunk(tensor: DTensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of this process's shard, and the index in the whole tensor at which it begins.

    It is what torch's distributed checkpoints ask a DTensor for, so masks and checkpoints agree on who holds
    what: uneven and empty shards and those of FSDP on top of tensor parallelism included.
    """
    (chunk,) = tensor.__create_chunk_list__()
    return tuple(chunk.sizes), tuple(chunk.offsets)


def is_flattened_by_fsdp1(param) -> bool:
    """Whether the first FSDP (`FullyShardedDataParallel`) manages the parameter and has flattened it."""
    return getattr(param, "_fsdp_flattened", False)


def restore_buffers(model: nn.Module) -> None:
    """Compute the buffers that no state dict holds, such as rotary frequencies, where transformers knows how.

    Each is marked as not initialised and its module given to the model's own `_init_weights`, which is what
    `from_pretrained` does. That may draw the module's parameters anew as well: restore buffers before
    reading weights. Buffers of modules that transformers does not know stay as they are.
    """
    from transformers import PreTrainedModel  # here: masks need torch alone

    owners = {}  # a module belongs to the innermost transformers model around it
    for outer in model.modules():
        if isinstance(outer, PreTrainedModel):
            owners.update(dict.fromkeys(outer.modules(), outer))
    for module, owner in owners.items():
        buffers = [module._buffers[name] for name in module._non_persistent_buffers_set]
        if any(buffer is not None for buffer in buffers):
            for buffer in buffers:
                if buffer is not None:
                    buffer._is_hf_initialized = False
            owner._init_weights(module)


def conversions_on_load(model: nn.Module) -> list:
    """What `from_pretrained` would do to this architecture's tensors between file and model: renamings, fusions."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    return get_model_conversion_mapping(model, add_legacy=False)


def may_be_left_out(model: nn.Module, name: str) -> bool:
    """Whether `from_pretrained` passes silently over a tensor of the files that the model has no place for.

    Files of old Llamas also hold rotary frequencies, layer by layer.
    """
    patterns = [p for part in model.modules() for p in getattr(part, "_keys_to_ignore_on_load_unexpected", None) or ()]
    return any(re.search(pattern, name) for pattern in (*patterns, r"rotary_emb\.inv_freq$"))


def enable_activation_checkpointing(model: nn.Module) -> None:
    """Have each layer of a transformers model computed again in the backward pass, instead of kept.

    transformers renames the method; both names take torch.utils.checkpoint's arguments first. Do it before adapters are
    attached: PEFT asks the model whether it checkpoints.
    """
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)({"use_reentrant": False})


def fake_tensors() -> FakeTensorMode:
    """A context in which tensors have shapes, dtypes, devices and storages of a size, and no memory."""
    return FakeTensorMode()


def device_of(tensor: torch.Tensor) -> torch.device:
    """`tensor.device`; of a fake tensor without the detour through its mode, which is an eighth of a trace's time."""
    return tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device


@torch.no_grad()
def fill_from_meta(model: nn.Module) -> None:
    """Give every parameter and buffer on meta storage on the CPU: fake, within `fake_tensors`. Ties and shards stay."""
    filled: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in filled:
                    new = _like(tensor)
                    if isinstance(tensor, nn.Parameter):
                        new = nn.Parameter(new, tensor.requires_grad)
                    filled[id(tensor)] = new
                tensors[name] = filled[id(tensor)]
    for module in model.modules():
        if isinstance(module, FSDPModule):  # it keeps tensors of its own beside the module's
            for group in _parameter_groups(module):
                for parameter in group.fsdp_params:
                    parameter.reset_sharded_param()


def _parameter_groups(module: FSDPModule) -> list:
    """FSDP's own groups of a module's parameters: torch 2.11 had one at most, under a name in the singular."""
    state = module._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return state._fsdp_param_groups
    return [state._fsdp_param_group] if state._fsdp_param_group is not None else []


def _like(tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, DTensor):
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    local = torch.empty(tensor._local_tensor.shape, dtype=tensor.dtype)
    how = {"run_check": False, "shape": tensor.shape, "stride": tensor.stride()}
    return DTensor.from_local(local, tensor.device_mesh, tensor.placements, **how)


@contextmanager
def fake_ranks(world_size: int) -> Iterator[None]:
    """Make this process rank 0 of a process group whose other ranks do not exist; collectives do nothing.

    Raises RuntimeError where a process group exists already.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise RuntimeError(
            "memory is estimated with a process group of its own, and this process is in one already: "
            "estimate before init_process_group, or in a process apart (python -m ftkit.memory)"
        )
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def fix_adaption_prompt_bias(model: PeftModel) -> PeftModel:
    """Correct every layer with an adaption prompt whose output projection has a bias; returns the model."""
    for module in model.modules():
        if isinstance(module, AdaptedAttention) and module.model.o_proj.bias is not None:
            module.register_forward_hook(_subtract_bias)
    return model


def _subtract_bias(module: AdaptedAttention, _inputs: tuple, output: tuple) -> tuple[torch.Tensor, ...]:
    attended, *others = output  # attended: (B, T, D)
    return attended - module.model.o_proj.bias, *others
