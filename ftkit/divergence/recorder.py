"""Record what every module computes in the first steps of a training loop, to be compared with another run.

A tensor is kept as one line for each of its rows: `PROJECTIONS` random projections of the row, in float64. Rows have
keys that do not depend on how a run is split: that of a token is made of its document and its place in it, that of a
row of a parameter is its index in the whole one. Projections of a row's parts add up to the row's. So shards of FSDP
and tensor parallelism, shares of a batch and packed sequences can be compared with a single process.

How far rounding may lead is measured: the reference is recorded twice, the second time with random noise of the size of
rounding errors added to every output and gradient (the idea of TTrace, Jiang et al. 2025, arXiv:2506.09280).
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.module_tracker import ModuleTracker

from ftkit._compat import local_chunk
from ftkit._modules import clean_name
from ftkit.dtensor import local_gradient, local_tensor

PROJECTIONS = 4
OUTPUT, OUTPUT_GRADIENT, GRADIENT, PARAMETER = "output", "gradient of output", "gradient", "parameter"
PADDING = 0  # the key of what is not compared
CHUNK = 2**24  # elements that are projected at once


@contextmanager
def record(
    folder: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int = 3,
    first_step: int = 0,
    rounding: bool = False,
) -> Iterator[None]:
    """Record the next `steps` steps of `optimizer` within the block; every rank writes its part into `folder`.

    Recorded are, of each step: outputs of all modules, the gradients of these, gradients of parameters as the optimizer
    gets them (reduced and clipped), the parameters after it, and the settings of its groups; before the first step the
    parameters as well. It takes 40 bytes for each token and module, twice, and for each row of a parameter.

    Args:
        model: as the loop calls it: wrapped, sharded or plain. Compiled modules may not show their parts.
        first_step: number of the first step, for a run that is resumed.
        rounding: add noise of the size of rounding errors, and keep this apart as the yardstick of `folder`'s run. Of
            two runs, the reference needs one, from the same beginning.
    """
    recorder = _Recorder(model, optimizer, range(first_step, first_step + steps), rounding)
    try:
        yield
    finally:
        recorder.remove_hooks()
        recorder.write(Path(folder))


def unit_roundoff(dtype: torch.dtype | str) -> float:
    """The relative error of rounding to `dtype`."""
    return torch.finfo(getattr(torch, dtype) if isinstance(dtype, str) else dtype).eps / 2


def rounding_error(tensor: torch.Tensor, width: int) -> torch.Tensor:
    """u + sqrt(width) u' times the RMS of each row of a tensor of sums of `width` terms.

    u is the rounding of the result, sqrt(width) u' that of the sum, as it probably is at most (Higham & Mary 2019), in
    float32 where the result has fewer bits.
    """
    sums = torch.float32 if tensor.element_size() < 4 else tensor.dtype
    size = unit_roundoff(tensor.dtype) + math.sqrt(width) * unit_roundoff(sums)
    return size * tensor.to(sums).square().mean(-1, keepdim=True).sqrt()


@lru_cache(maxsize=32)
def projection(columns: int) -> torch.Tensor:
    """Normal numbers (columns, PROJECTIONS) in float64: those of fewer columns are the first ones of more."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal((columns, PROJECTIONS)))


def project(rows: torch.Tensor, offset: int = 0) -> torch.Tensor:
    """Projections (N, PROJECTIONS) of rows (N, C) that begin at column `offset` of whole ones."""
    matrix = projection(offset + rows.shape[1])[offset:]
    parts = []
    for part in rows.detach().split(max(1, CHUNK // max(1, rows.shape[1]))):
        part = part.to("cpu" if rows.device.type == "mps" else rows.device).double()
        parts.append((part @ matrix.to(part.device)).cpu())
    return torch.cat(parts)


def token_keys(args: tuple, kwargs: dict) -> torch.Tensor | None:
    """Keys (B, T) of the tokens of a model's inputs, PADDING where masked; (B, 1) of rows without token ids.

    A document is a row without its padding or, where `position_ids` do not rise, a part of one.
    """
    tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.ndim]
    ids = kwargs.get("input_ids", next((t for t in tensors if t.ndim == 2 and not t.is_floating_point()), None))
    if ids is None:
        floating = next((t for t in tensors if t.is_floating_point()), None)
        return None if floating is None else torch.tensor([[_hash(row)] for row in floating.detach().float().cpu()])
    ids = ids.cpu()
    kept = torch.ones_like(ids, dtype=torch.bool)
    if getattr(mask := kwargs.get("attention_mask"), "shape", None) == ids.shape:
        kept = mask.cpu() != 0
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    if getattr(given := kwargs.get("position_ids"), "ndim", 0) == 2:
        positions = given.cpu().expand_as(ids)
    keys = torch.full(ids.shape, PADDING, dtype=torch.int64)
    for b in range(len(ids)):
        places = kept[b].nonzero().flatten()
        starts = (positions[b, places].diff() <= 0).nonzero().flatten() + 1
        for document in places.tensor_split(starts.tolist()):
            keys[b, document] = _hash(ids[b, document]) + torch.arange(len(document)) * 0x9E3779B97F4A7C1
    return keys


def _hash(row: torch.Tensor) -> int:
    digest = hashlib.blake2b(row.numpy().astype(np.float64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) >> 1  # so that adding a place rarely overflows; it may wrap


def floating_tensors(output) -> list[torch.Tensor]:
    """The floating-point tensors in what a module takes or returns, through tuples, lists and dictionaries."""
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() and output.ndim else []
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return [tensor for part in parts for tensor in floating_tensors(part)]


class _Recorder:
    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, rounding: bool):
        self.model, self.optimizer, self.steps, self.rounding = model, optimizer, steps, rounding
        self.step, self.keys, self.outermost = steps.start, None, None
        self.tokens = 0  # in the batch of this step
        self.entries: dict[tuple, dict] = {}  # (step, kind, name) -> what is known of the tensor, with its lines
        self.settings: dict[int, dict] = {}  # step -> parameter -> of its group in the optimizer
        self.generators: dict[torch.device, torch.Generator] = {}
        self.tracker = ModuleTracker()  # not entered: only asked whether this is a backward pass
        # Wrappers share a clean name with what they wrap, which comes later in this order and is the one recorded.
        modules = {clean_name(f"{name}.").rstrip("."): module for name, module in model.named_modules()}
        self.hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        for name, module in modules.items():
            self.hooks.append(module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True))
            self.hooks.append(module.register_forward_hook(partial(self._leave, name), with_kwargs=True))
        self._add_parameters()

    @property
    def done(self) -> bool:
        return self.step not in self.steps

    def remove_hooks(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    def write(self, folder: Path) -> None:
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        tensors, entries = {}, []
        for number, ((step, kind, name), entry) in enumerate(self.entries.items()):
            tensors[f"{number}.keys"] = torch.cat(entry.pop("keys"))
            tensors[f"{number}.lines"] = torch.cat(entry.pop("lines"))
            entries.append({"step": step, "kind": kind, "name": name, **entry})
        done = [self.steps.start, self.step]
        about = {"ranks": ranks, "steps": done, "entries": entries, "settings": self.settings}
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{'rounding' if self.rounding else 'rank'}-{rank}.safetensors"
        save_file(tensors, folder / name, {"recording": json.dumps(about)})

    def _enter(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.outermost is None and not self.done and not self.tracker.is_bw:
            # Without gradients it is an evaluation.
            self.outermost, self.keys = name, token_keys(args, kwargs) if torch.is_grad_enabled() else None
            self.tokens += 0 if self.keys is None else int((self.keys != PADDING).sum())

    def _leave(self, name: str, module: nn.Module, args: tuple, kwargs: dict, output) -> None:
        if self.done:
            return
        again = self.tracker.is_bw  # recomputed by activation checkpointing
        width = max((tensor.shape[-1] for tensor in floating_tensors([args, kwargs])), default=0)
        for number, tensor in enumerate(floating_tensors(output)):
            label = f"{name}[{number}]" if number else name
            columns = _columns(module, tensor)
            if not again:
                if self.rounding and 0 not in tensor.stride():
                    _local(tensor).add_(self._noise(_local(tensor), width))  # by .data: autograd need not know
                self._add_output(OUTPUT, label, self.keys, columns, tensor, training=module.training)
            if tensor.requires_grad:
                tensor.register_hook(partial(self._backward, label, self.keys, columns, width))
        if name == self.outermost:
            self.outermost = None

    def _backward(self, label: str, keys: torch.Tensor, columns, width: int, grad: torch.Tensor):
        if self.done:
            return None
        if self.rounding:
            grad = grad.clone()
            _local(grad).add_(self._noise(_local(grad), width))
        self._add_output(OUTPUT_GRADIENT, label, keys, columns, grad)
        return grad if self.rounding else None

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if self.done:
            return
        names = {}
        for name, parameter in self.model.named_parameters():
            names[parameter] = clean_name(name)
            if parameter.grad is not None:
                if self.rounding:
                    # Towards and past zero, not at random: an optimizer that divides by the root of a second moment
                    # makes a whole step of a sign, and all signs that rounding may change are to change here.
                    grad = _local(parameter.grad)
                    grad.sub_(grad.sign() * rounding_error(grad, self.tokens))
                self._add_parameter(GRADIENT, clean_name(name), parameter, local_gradient(parameter))
        self.settings[self.step] = {
            names[parameter]: _settings(group)
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter in names
        }

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if not self.done:
            self.step, self.outermost, self.tokens = self.step + 1, None, 0
            self._add_parameters(trained=True)

    @torch.no_grad()
    def _noise(self, tensor: torch.Tensor, width: int) -> torch.Tensor:
        """Uniform noise up to `rounding_error`."""
        if tensor.device not in self.generators:
            self.generators[tensor.device] = torch.Generator(tensor.device).manual_seed(0)
        draws = torch.rand(tensor.shape, generator=self.generators[tensor.device], device=tensor.device)
        return (2 * draws - 1) * rounding_error(tensor, width)

    def _add_output(self, kind: str, label: str, keys, columns, tensor: torch.Tensor, **facts) -> None:
        if keys is None:
            return
        tensor = tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
        rows, tokens = keys.shape
        if tensor.ndim > 1 and tuple(tensor.shape[:2]) in {(rows, tokens), (1, tokens)}:  # (1, T): equal for all rows
            tensor = tensor.expand(rows, *tensor.shape[1:]).reshape(rows * tokens, -1)
        elif tensor.shape[0] == rows * tokens:
            tensor = tensor.reshape(rows * tokens, -1)
        else:
            return
        kept = keys.flatten() != PADDING
        self._add(kind, label, keys.flatten()[kept], tensor[kept.to(tensor.device)], columns, tensor.dtype, **facts)

    @torch.no_grad()
    def _add_parameters(self, trained: bool = False) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.is_floating_point() and (parameter.requires_grad or not trained):
                self._add_parameter(PARAMETER, clean_name(name), parameter, local_tensor(parameter))

    def _add_parameter(self, kind: str, name: str, parameter: nn.Parameter, local: torch.Tensor) -> None:
        sizes, offsets = (
            local_chunk(parameter) if isinstance(parameter, DTensor) else (parameter.shape, [0] * parameter.ndim)
        )
        lead = max(1, parameter.ndim - 1)  # a vector has a row for each element
        index = torch.arange(math.prod(parameter.shape[:lead])).view(parameter.shape[:lead])
        index = index[tuple(slice(o, o + n) for o, n in zip(offsets[:lead], sizes[:lead], strict=True))].flatten()
        columns = [offsets[-1], sizes[-1], parameter.shape[-1]] if parameter.ndim > 1 else [0, 1, 1]
        self._add(kind, name, index, local.reshape(len(index), -1), columns, local.dtype)

    def _add(self, kind: str, name: str, keys: torch.Tensor, rows: torch.Tensor, columns, dtype, **facts) -> None:
        if not len(keys):
            return
        columns = columns or [0, rows.shape[1], rows.shape[1]]
        facts |= {"columns": columns, "dtype": str(dtype).removeprefix("torch.")}
        entry = self.entries.setdefault((self.step, kind, name), {"keys": [], "lines": [], **facts})
        entry["keys"].append(keys)
        entry["lines"].append(project(rows, columns[0]))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return local_tensor(tensor).data


def _columns(module: nn.Module, output: torch.Tensor) -> list[int] | None:
    """Offset, number and total of the features of a module's output that this rank holds; None for all.

    Under tensor parallelism a column-parallel layer returns its own features as a plain tensor.
    """
    width, weight = output.shape[-1], getattr(module, "weight", None)
    if isinstance(weight, DTensor) and not isinstance(output, DTensor) and weight.ndim == 2:
        sizes, offsets = local_chunk(weight)
        if sizes[0] == width != weight.shape[0]:
            return [offsets[0], width, weight.shape[0]]
    return None


def _settings(group: dict) -> dict:
    """The numbers among the settings of an optimizer's group."""
    found = {name: value for name, value in group.items() if name not in ("params", "initial_lr")}
    found = {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in found.items()}
    numbers = {n: v for n, v in found.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    return numbers | {n: list(v) for n, v in found.items() if isinstance(v, tuple)}
