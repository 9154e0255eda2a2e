"""Every use of a private API of torch, transformers and PEFT, each with a test that fails when it changes."""

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

    torch's distributed checkpoints use the same method, so masks and checkpoints agree also on uneven and empty shards
    and on those of FSDP on top of tensor parallelism.
    """
    (chunk,) = tensor.__create_chunk_list__()
    return tuple(chunk.sizes), tuple(chunk.offsets)


def fused_adamw(
    params: list[torch.Tensor],
    grads: list[torch.Tensor],
    exp_avgs: list[torch.Tensor],
    exp_avg_sqs: list[torch.Tensor],
    max_exp_avg_sqs: list[torch.Tensor],
    steps: list[torch.Tensor],
    options: dict,
) -> None:
    """The kernel of `torch.optim.AdamW(fused=True)`, called once, without the ten calls that torch makes around it.

    `steps` are counted from 1 and not changed; `options` are those of `torch.optim.adamw.adamw`, of which the choice of
    a kernel is left out.
    """
    options = {name: value for name, value in options.items() if name not in ("foreach", "fused")}
    torch._fused_adamw_(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, **options)


def is_flattened_by_fsdp1(param) -> bool:
    """Whether FSDP1 (`FullyShardedDataParallel`) has flattened the parameter."""
    return getattr(param, "_fsdp_flattened", False)


def restore_buffers(model: nn.Module) -> None:
    """Compute the non-persistent buffers of transformers models, such as rotary frequencies.

    As in `from_pretrained`, each is marked as not initialised and its module passed to the model's `_init_weights`, as
    are the models, which may set buffers of modules inside them. Parameters are marked as initialised, because a plain
    tensor cannot be copied into a shard. Some are initialised all the same, so restore buffers before reading weights.
    Buffers outside transformers models do not change.
    """
    from transformers import PreTrainedModel  # here, because masks need torch alone

    owners = {}  # the innermost transformers model around each module
    for outer in model.modules():
        if isinstance(outer, PreTrainedModel):
            owners.update(dict.fromkeys(outer.modules(), outer))
    for module in owners:
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = True
        for name, buffer in module.named_buffers(recurse=False):
            buffer._is_hf_initialized = name not in module._non_persistent_buffers_set
    for module, owner in owners.items():
        if module is owner or any(module._buffers[name] is not None for name in module._non_persistent_buffers_set):
            owner._init_weights(module)


def conversions_on_load(model: nn.Module) -> list:
    """The conversions of `from_pretrained` between files and this architecture: renamings, fusions."""
    from transformers.conversion_mapping import get_model_conversion_mapping

    return get_model_conversion_mapping(model, add_legacy=False)


def supported_attention(architecture: type[nn.Module]) -> tuple[bool, bool]:
    """Whether a transformers model class has sdpa, and FlashAttention."""
    return architecture._supports_sdpa, architecture._supports_flash_attn


def may_be_left_out(model: nn.Module, name: str) -> bool:
    """Whether `from_pretrained` silently ignores an unexpected tensor in the files.

    Includes the rotary frequencies in files of old Llamas.
    """
    patterns = [p for part in model.modules() for p in getattr(part, "_keys_to_ignore_on_load_unexpected", None) or ()]
    return any(re.search(pattern, name) for pattern in (*patterns, r"rotary_emb\.inv_freq$"))


def enable_activation_checkpointing(model: nn.Module, **options) -> None:
    """Recompute each layer of a transformers model in the backward pass instead of saving its activations.

    `options` are further arguments of torch.utils.checkpoint.

    Call it before adapters are attached, because PEFT asks the model whether it checkpoints. transformers renames the
    method; both names take torch.utils.checkpoint's arguments first.
    """
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)({"use_reentrant": False, **options})


@contextmanager
def fake_tensors() -> Iterator[None]:
    """A context in which tensors have shapes, dtypes, devices and sized storages, but no memory.

    torch's grouped matrix product, which transformers' experts call, is fake in bfloat16 only, and the backward pass of
    transformers' own reads values in 5.15: in other dtypes experts take one here whose tensors have the same sizes.
    """
    from transformers.integrations import moe  # here, because masks need torch alone

    product = moe._grouped_mm

    def sized(input: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
        return product(input, weight, offs) if weight.dtype == torch.bfloat16 else _GroupedSizes.apply(input, weight)

    moe._grouped_mm = sized
    try:
        with FakeTensorMode():
            yield
    finally:
        moe._grouped_mm = product


class _GroupedSizes(torch.autograd.Function):
    """What a grouped matrix product of (S, D) and (experts, D, N) allocates, without its values."""

    @staticmethod
    def forward(ctx, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(input, weight)
        return input.new_empty(len(input), weight.shape[-1])

    @staticmethod
    def backward(ctx, _) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors)


def device_of(tensor: torch.Tensor) -> torch.device:
    """`tensor.device`, read directly from a fake tensor, because dispatch costs an eighth of a trace's time."""
    return tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device


@torch.no_grad()
def fill_from_meta(model: nn.Module) -> None:
    """Allocate parameters and buffers on the CPU (fake ones within `fake_tensors`); keeps ties and shards."""
    filled: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in filled:
                    new, parameter = _like(tensor), isinstance(tensor, nn.Parameter)
                    filled[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if parameter else new
                tensors[name] = filled.get(id(tensor))
    for module in model.modules():
        if isinstance(module, FSDPModule):  # it holds references to the old tensors
            for group in _parameter_groups(module):
                for parameter in group.fsdp_params:
                    parameter.reset_sharded_param()


def _parameter_groups(module: FSDPModule) -> list:
    """FSDP's parameter groups of a module; torch 2.11 had at most one, under a name in the singular."""
    state = module._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return state._fsdp_param_groups
    return [state._fsdp_param_group] if state._fsdp_param_group is not None else []


def _like(tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, DTensor):
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    local = torch.empty(tensor._local_tensor.shape, dtype=tensor.dtype)
    layout = {"run_check": False, "shape": tensor.shape, "stride": tensor.stride()}
    return DTensor.from_local(local, tensor.device_mesh, tensor.placements, **layout)


@contextmanager
def fake_ranks(world_size: int) -> Iterator[None]:
    """A fake process group with this process as rank 0; collectives do nothing.

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
    """Subtract the output projection's bias in adaption prompts, which PEFT adds twice; returns the model."""
    for module in model.modules():
        if isinstance(module, AdaptedAttention) and module.model.o_proj.bias is not None:
            module.register_forward_hook(_subtract_bias)
    return model


def _subtract_bias(module: AdaptedAttention, _inputs: tuple, output: tuple) -> tuple[torch.Tensor, ...]:
    attended, *others = output  # attended: (B, T, D)
    return attended - module.model.o_proj.bias, *others
