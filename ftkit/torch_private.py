"""The few calls into torch and transformers that their authors have not promised to keep, in one place.

Each has a test that fails when a new version changes what is relied on here.
"""

import re

from torch import nn
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
    patterns = [
        p for part in model.modules() for p in getattr(part, "_keys_to_ignore_on_load_unexpected", None) or ()
    ]
    return any(re.search(pattern, name) for pattern in (*patterns, r"rotary_emb\.inv_freq$"))
