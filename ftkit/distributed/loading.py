"""Load weights into a sharded model that starts empty on the meta device.

`load_sharded_model` lets every rank read its own part of the files. `load_from_rank0` reads on rank 0 and broadcasts
(the scheme of FSDP1's `sync_module_states=True`, github.com/pytorch/pytorch/issues/105840); it costs rank 0 the whole
model and serves files whose tensors transformers converts. Both fill every tensor with NaN before loading and check
that all are finite afterwards.
"""

import hashlib
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

from ftkit._compat import conversions_on_load, local_chunk, may_be_left_out
from ftkit._compat import restore_buffers as restore_buffers  # its public name
from ftkit.models import explain_two_heads

FLOATS = {"F64", "F32", "F16", "BF16"}
FALLBACK_HINT = "if from_pretrained opens it, load it with ftkit.distributed.loading.load_from_rank0"


def load_sharded_model(
    build_meta: Callable[[], nn.Module],
    apply_parallelism: Callable[[nn.Module], nn.Module],
    source: str | Path,
    device: torch.device,
    key_map: Callable[[str], str | None] = lambda name: name,
    init_fn: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Load a sharded model of which every rank reads only its own part.

    Tied weights are read once; each tensor is converted to its parameter's dtype.

    Args:
        build_meta: makes the model on the meta device.
        apply_parallelism: shards it (tensor parallelism, `fully_shard`, or nothing).
        source: a local folder or a hub name.
        key_map: a parameter's name in the model -> its name in the files, or None where the files lack it.
        init_fn: initialises the parameters that the files lack.

    Raises:
        FileNotFoundError, OSError: files are missing.
        ValueError: tensors are missing, of another shape or in excess; the message names them.
        RuntimeError: loading left tensors unset; the message names them.
    """
    files = tensor_files(source)
    model = build_meta()
    keys = _keys_to_read(model, files, key_map, source)
    known = {key_map(name) for name in _tensors(model)}  # the files may hold tied weights more than once
    _check_files(model, files, keys, known, source)
    model = _materialise(apply_parallelism(model), device)
    restore_buffers(model)
    _read_shards(model, files, keys)
    if init_fn is not None:
        init_fn(model)
    assert_initialized(model)
    return model


def load_from_rank0(
    build_meta: Callable[[], nn.Module],
    build_full: Callable[[], nn.Module],
    apply_parallelism: Callable[[nn.Module], nn.Module],
    device: torch.device,
) -> nn.Module:
    """Load a sharded model whose weights only rank 0 reads and broadcasts.

    `build_meta` makes the model on the meta device, on every rank; `build_full` loads it on the CPU, on rank 0 only;
    `apply_parallelism` shards it. Raises RuntimeError naming the tensors that loading left unset.
    """
    model = _materialise(apply_parallelism(build_meta()), device)
    full, failure = None, [None]
    if dist.get_rank() == 0:
        try:
            full = build_full()
        except Exception as error:  # the others wait for the weights
            failure = [error]
    dist.broadcast_object_list(failure, src=0)
    if failure[0] is not None:
        raise failure[0]
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, full.state_dict() if full is not None else {}, options=options)
    # A state dict lacks buffers such as the rotary frequencies; rank 0 has computed them while loading.
    sources = dict(full.named_buffers()) if full is not None else {}
    for name, buffer in model.named_buffers():
        local = buffer.to_local() if isinstance(buffer, DTensor) else buffer  # tensor parallelism replicates buffers
        if name in sources:
            local.copy_(sources[name])
        dist.broadcast(local, src=0)
    assert_initialized(model)
    return model


def tensor_files(source: str | Path) -> dict[str, str]:
    """The safetensors file of each tensor of a local folder or hub name, downloaded if necessary."""
    source = str(source)
    single = cached_file(source, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    index = single or cached_file(source, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    if index is None:
        raise FileNotFoundError(
            f"{source} has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}: "
            "save the model there again with save_pretrained"
        )
    paths = [single] if single else get_checkpoint_shard_files(source, index)[0]
    if missing := [Path(path).name for path in paths if not Path(path).is_file()]:
        raise FileNotFoundError(f"{source} lacks {', '.join(missing)}, which its index names: copy it there")
    files = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                files.update(dict.fromkeys(file.keys(), path))
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or cut off ({error}): copy it there again") from None
    return files


def files_digest(source: str | Path) -> str:
    """16 digits of a SHA-256 over the names and first rows of all tensors: cheap, and enough to see a training."""
    digest, files = hashlib.sha256(), tensor_files(source)
    for name, _, stored in _slices(files, {name: name for name in sorted(files)}):
        row = stored[:1] if stored.get_shape() else stored[...]
        digest.update(f"{name}{stored.get_shape()}".encode() + row.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def fill_with_nan(model: nn.Module) -> None:
    """Fill every parameter and buffer (this rank's shard of it) with NaN, integers with their dtype's minimum.

    Booleans and bytes have no value to spare and are left alone.
    """
    for _, tensor in _local_tensors(model):
        tensor.fill_(float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min)


def assert_initialized(model: nn.Module) -> None:
    """Raise RuntimeError naming parameters and buffers that are on meta, left as by `fill_with_nan`, or not finite."""
    unset = [name for name, tensor in _local_tensors(model) if tensor.is_meta or not _is_set(tensor)]
    if unset:
        raise RuntimeError(
            f"{len(unset)} tensors were left unset by loading: {', '.join(unset[:5])}. "
            "A checkpoint holds no rotary frequencies: compute such buffers again (restore_buffers). "
            "For a parameter: is it this model's checkpoint?"
        )


def _materialise(model: nn.Module, device: torch.device) -> nn.Module:
    """Allocate the model's shards on `device`, filled with NaN."""
    model.to_empty(device=device)
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # to_empty gives tied modules a tensor each
    fill_with_nan(model)
    return model


def _is_set(tensor: torch.Tensor) -> bool:
    good = torch.isfinite(tensor) if tensor.is_floating_point() else tensor != torch.iinfo(tensor.dtype).min
    return bool(good.all())


def _local_tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    named = chain(model.named_parameters(), model.named_buffers())
    local = [(name, t.to_local() if isinstance(t, DTensor) else t) for name, t in named]
    return [(name, t.detach()) for name, t in local if t.dtype not in (torch.bool, torch.uint8)]


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of a model: parameters and persistent buffers, tied ones under each of their names."""
    return model.state_dict(keep_vars=True)


def _keys_to_read(model: nn.Module, files: dict, key_map: Callable, source: str | Path) -> dict[str, str]:
    """For each tensor to read, one of its names in the model -> its name in the files.

    Raises ValueError where the files hold different tensors under tied names.
    """
    tied = defaultdict(list)
    for name, tensor in _tensors(model).items():
        if (key := key_map(name)) is not None:
            tied[id(tensor)].append((name, key))
    keys = {}
    for group in tied.values():
        stored = [(name, key) for name, key in group if key in files]
        for _, key in stored[1:]:
            if not _equal_in_files(files, stored[0][1], key):
                raise ValueError(explain_two_heads(source, key, stored[0][1]))
        keys.update((stored or group)[:1])
    return keys


def _equal_in_files(files: dict, one: str, other: str) -> bool:
    """Whether two tensors are equal; read in parts, because they are as large as an embedding."""
    with safe_open(files[one], framework="pt") as first, safe_open(files[other], framework="pt") as second:
        a, b = first.get_slice(one), second.get_slice(other)
        rows = range(0, a.get_shape()[0], 4096)
        return a.get_shape() == b.get_shape() and all(torch.equal(a[i : i + 4096], b[i : i + 4096]) for i in rows)


def _check_files(model: nn.Module, files: dict, keys: dict[str, str], known: set, source: str | Path) -> None:
    if conversions_on_load(model):
        raise ValueError(f"transformers converts the tensors of {type(model).__name__} on loading: {FALLBACK_HINT}")
    if missing := [key for key in keys.values() if key not in files]:
        raise ValueError(f"{source} lacks {_some(missing)}: is it the checkpoint of this model? Or {FALLBACK_HINT}")
    if excess := [key for key in files if key not in known and not may_be_left_out(model, key)]:
        raise ValueError(
            f"{source} also holds {_some(excess)}, for which {type(model).__name__} has no place: "
            f"is it the checkpoint of another model? Or {FALLBACK_HINT}"
        )
    tensors = _tensors(model)
    for name, file, found in _slices(files, keys):
        shape, expected = tuple(found.get_shape()), tuple(tensors[name].shape)
        if shape != expected:
            raise ValueError(
                f"{keys[name]} has the shape {shape} in {Path(file).name} and {expected} in the model: "
                "is it the checkpoint of another model?"
            )
        if tensors[name].is_floating_point() and found.get_dtype() not in FLOATS:
            raise ValueError(f"{keys[name]} is quantised ({found.get_dtype()}): load the unquantised model")


def _slices(files: dict, keys: dict[str, str]):
    """Each tensor's name, its file, and a handle that reads any part of it; one file after another."""
    by_file = defaultdict(list)
    for name, key in keys.items():
        by_file[files[key]].append((name, key))
    for path, inside in by_file.items():
        with safe_open(path, framework="pt") as file:
            for name, key in inside:
                yield name, path, file.get_slice(key)


@torch.no_grad()
def _read_shards(model: nn.Module, files: dict, keys: dict[str, str]) -> None:
    tensors = _tensors(model)
    for name, path, full in _slices(files, keys):
        tensor, part = tensors[name], ...
        if isinstance(tensor, DTensor):
            sizes, offsets = local_chunk(tensor)
            part = tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))
            tensor = tensor.to_local()
        if tensor.numel():
            tensor.copy_(full[part])
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError(f"{keys[name]} in {path} holds NaN or infinity: take an undamaged checkpoint")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
