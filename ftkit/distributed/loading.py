"""Delayed initialisation: one rank reads the weights, the others start empty on the meta device.

The scheme of FSDP1, `sync_module_states=True` (github.com/pytorch/pytorch/issues/105840), in today's API. Nothing is
taken on trust: every tensor is filled with NaN before loading, and must be finite after it. `shard_loading` is the
better way.
"""

from collections import defaultdict
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.tensor import DTensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from ftkit._compat import conversions_on_load, local_chunk, may_be_left_out, restore_buffers


def load_from_rank0(
    build_empty: Callable[[], nn.Module],
    build_full: Callable[[], nn.Module],
    shard: Callable[[nn.Module], nn.Module],
    device: torch.device,
) -> nn.Module:
    """A sharded model whose weights only rank 0 has read.

    `build_empty` makes the model on the meta device (called on every rank), `build_full` loads it on the CPU
    (called on rank 0 only), `shard` applies `fully_shard`. Raises RuntimeError naming every tensor that
    loading left unset.
    """
    model = shard(build_empty())
    model.to_empty(device=device)
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # to_empty gives tied modules a tensor each
    fill_with_nan(model)
    full = build_full() if dist.get_rank() == 0 else None
    state = full.state_dict() if full is not None else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, state, options=options)
    # A state dict leaves out buffers such as the rotary frequencies; rank 0 has computed them while loading.
    sources = dict(full.named_buffers()) if full is not None else {}
    for name, buffer in model.named_buffers():
        if name in sources:
            buffer.copy_(sources[name])
        dist.broadcast(buffer, src=0)
    assert_initialized(model)
    return model


@torch.no_grad()
def fill_with_nan(model: nn.Module) -> None:
    """Fill every parameter and buffer (this rank's shard of it) with what no training sets.

    That is NaN, and the least number of an integer dtype; booleans and bytes have no such value and stay.
    """
    for _, tensor in _local_tensors(model):
        tensor.fill_(_unset(tensor.dtype))


def assert_initialized(model: nn.Module) -> None:
    """Raise RuntimeError naming each parameter or buffer that is still on meta, poisoned or not finite."""
    unset = [name for name, tensor in _local_tensors(model) if tensor.is_meta or not _is_set(tensor)]
    if unset:
        raise RuntimeError(
            f"{len(unset)} tensors were left unset by loading: {', '.join(unset[:5])}. "
            "A checkpoint holds no rotary frequencies: compute such buffers again (restore_buffers). "
            "For a parameter: is it this model's checkpoint?"
        )


def _unset(dtype: torch.dtype) -> float | int:
    return float("nan") if dtype.is_floating_point else torch.iinfo(dtype).min


def _is_set(tensor: torch.Tensor) -> bool:
    good = torch.isfinite(tensor) if tensor.is_floating_point() else tensor != _unset(tensor.dtype)
    return bool(good.all())


def _local_tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    named = chain(model.named_parameters(), model.named_buffers())
    local = [(name, t.to_local() if isinstance(t, DTensor) else t) for name, t in named]
    return [(name, t.detach()) for name, t in local if t.dtype not in (torch.bool, torch.uint8)]


FLOATS = {"F64", "F32", "F16", "BF16"}
FALLBACK_HINT = "; if from_pretrained opens it, load it with ftkit.distributed.loading.load_from_rank0"


def load_sharded_model(
    build_empty: Callable[[], nn.Module],
    shard: Callable[[nn.Module], nn.Module],
    source: str | Path,
    device: torch.device,
    file_name: Callable[[str], str | None] = lambda name: name,
    initialise: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """A sharded model of which every rank has read only its own part.

    `build_empty` makes the model on meta, `shard` cuts it (tensor parallelism, `fully_shard`, or nothing).
    `source` is a local folder or a hub name. `file_name` maps a parameter's name to its name in the files, or to
    None where the files do not hold it; `initialise` then sets such parameters. Tied weights are read once; each
    tensor is converted to its parameter's dtype.

    Raises FileNotFoundError or OSError for missing files, ValueError naming the tensors that are missing, of
    another shape or in excess, and RuntimeError naming every tensor that was left unset.
    """
    files = tensor_files(source)
    model = build_empty()
    names = _names_in_files(model, files, file_name)
    copies = {file_name(name) for name in _tensors(model)}  # tied weights may lie there more than once
    _check_files(model, files, names, copies, source)
    model = shard(model)
    model.to_empty(device=device)
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # to_empty gives tied modules a tensor each
    fill_with_nan(model)
    restore_buffers(model)
    _read_shards(model, files, names)
    if initialise is not None:
        initialise(model)
    assert_initialized(model)
    return model


def tensor_files(source: str | Path) -> dict[str, str]:
    """The safetensors file of each tensor of a local folder or hub name, which is downloaded where need be."""
    source = str(source)
    single = cached_file(source, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    index = single or cached_file(source, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    if index is None:
        raise FileNotFoundError(
            f"{source} has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}: "
            "save the model there again with save_pretrained"
        )
    paths = [single] if single else get_checkpoint_shard_files(source, index)[0]
    if gone := [Path(path).name for path in paths if not Path(path).is_file()]:
        raise FileNotFoundError(f"{source} lacks {', '.join(gone)}, which its index names: copy it there")
    files = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                files.update(dict.fromkeys(file.keys(), path))
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or cut off ({error}): copy it there again") from None
    return files


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of a model: parameters and persistent buffers, tied ones under each of their names."""
    return model.state_dict(keep_vars=True)


def _names_in_files(model: nn.Module, files: dict, file_name: Callable) -> dict[str, str]:
    """For each tensor that is to be read, one of its names in the model, and its name in the files."""
    tied = defaultdict(list)
    for name, tensor in _tensors(model).items():
        tied[id(tensor)].append((name, file_name(name)))
    names = {}
    for group in tied.values():
        group = [(name, wanted) for name, wanted in group if wanted is not None]
        there = [(name, wanted) for name, wanted in group if wanted in files]
        names.update((there or group)[:1])
    return names


def _check_files(model: nn.Module, files: dict, names: dict[str, str], copies: set, source: str | Path) -> None:
    if conversions_on_load(model):
        raise ValueError(f"transformers converts the tensors of {type(model).__name__} on loading{FALLBACK_HINT}")
    if missing := [wanted for wanted in names.values() if wanted not in files]:
        raise ValueError(f"{source} lacks {_some(missing)}: is it the checkpoint of this model?{FALLBACK_HINT}")
    if excess := [name for name in files if name not in copies and not may_be_left_out(model, name)]:
        raise ValueError(
            f"{source} also holds {_some(excess)}, for which {type(model).__name__} has no place: "
            f"is it the checkpoint of another model?{FALLBACK_HINT}"
        )
    tensors = _tensors(model)
    for name, file, found in _slices(files, names):
        shape, expected = tuple(found.get_shape()), tuple(tensors[name].shape)
        if shape != expected:
            raise ValueError(
                f"{names[name]} has the shape {shape} in {Path(file).name} and {expected} in the model: "
                "is it the checkpoint of another model?"
            )
        if tensors[name].is_floating_point() and found.get_dtype() not in FLOATS:
            raise ValueError(f"{names[name]} is quantised ({found.get_dtype()}): load the unquantised model")


def _slices(files: dict, names: dict[str, str]):
    """Each tensor's name, its file, and a handle from which any part of it can be read; a file at a time."""
    by_file = defaultdict(list)
    for name, wanted in names.items():
        by_file[files[wanted]].append((name, wanted))
    for path, inside in by_file.items():
        with safe_open(path, framework="pt") as file:
            for name, wanted in inside:
                yield name, path, file.get_slice(wanted)


@torch.no_grad()
def _read_shards(model: nn.Module, files: dict, names: dict[str, str]) -> None:
    tensors = _tensors(model)
    for name, _, whole in _slices(files, names):
        tensor = tensors[name]
        if isinstance(tensor, DTensor):
            sizes, offsets = local_chunk(tensor)
            part = tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))
            tensor = tensor.to_local()
        else:
            part = ...
        if tensor.numel():
            tensor.copy_(whole[part])


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
