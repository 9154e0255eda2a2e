"""Fisher information of weights, the masks of the most important ones, and files of masks.

The score of a weight is the diagonal of the empirical Fisher information: the mean over examples of the squared
gradient of the loss, as in Child-Tuning_D (Xu et al., EMNLP 2021). The paper's code squares the gradient of a whole
batch, in which the gradients of examples largely cancel, with dropout on; here that is an option, and the default is
one example at a time in evaluation mode.
"""

import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from ftkit._compat import local_chunk
from ftkit._modules import clean_name, preserve_modes
from ftkit.dtensor import local_gradient, local_tensor, wrap_like

from .masks import validate_fraction

Loss = Callable[[torch.nn.Module, Any], torch.Tensor]
_BLOCK = 1 << 22  # scores in a histogram's temporaries


def fisher_mask(model: torch.nn.Module, batches: Iterable, reserve_p: float, **options) -> dict[str, torch.Tensor]:
    """Masks of the child network in task-dependent mode: the weights with the largest Fisher information.

    One threshold holds for all parameters, so layers differ in how much of them is kept. Pass the result to
    `ChildTuningAdamW(..., mode="task-dependent", gradient_mask=...)`.

    Args:
        model, batches, options: as in `fisher_information`.
        reserve_p: fraction of the scored weights to keep, in (0, 1]; ties and zeros as in `top_fraction_masks`.

    Returns:
        bool tensors by parameter name, sharded as the parameters are; none for excluded and frozen parameters.
    """
    validate_fraction(reserve_p)  # before all the work
    return top_fraction_masks(fisher_information(model, batches, **options), reserve_p)


def fisher_information(
    model: torch.nn.Module,
    batches: Iterable,
    *,
    per: str = "example",
    eval_mode: bool = True,
    exclude: Iterable[str] = (),
    loss: Loss | None = None,
) -> dict[str, torch.Tensor]:
    """The mean squared gradient of each weight.

    The model's gradients and training modes are restored. Where the model is sharded, every process must pass the same
    batches, because FSDP averages gradients over processes.

    Args:
        batches: what the loss takes, for instance dicts with `input_ids` and `labels`, each (B, ...).
        per: "example" squares the gradient of each example's loss; "batch" that of each batch's.
        eval_mode: switch dropout off.
        exclude: regular expressions; parameters whose names contain a match are not scored.
        loss: `loss(model, batch)`, a scalar; by default `model(**batch).loss`.

    Returns:
        float32 tensors by parameter name (without wrapper prefixes), sharded as the parameters are.

    Raises:
        ValueError: no batches, an unknown `per`, a pattern without a match, a gradient that is not finite, no
            trainable parameter left, or different batches on another process.
    """
    if per not in ("example", "batch"):
        raise ValueError(f'per must be "example" or "batch", but is {per!r}')
    scored = _scored_parameters(model, tuple(exclude))
    scores = {name: torch.zeros_like(p, dtype=torch.float32, requires_grad=False) for name, p in scored.items()}
    sharded = _any_sharded(scored)
    device = next(iter(scored.values())).device
    count = 0
    with _preserve_grads_and_mode(model, eval_mode):
        for batch in _check_identical_batches(batches) if sharded else batches:
            for example in _examples(batch) if per == "example" else [batch]:
                model.zero_grad()
                (loss or _model_loss)(model, _map(example, lambda tensor: tensor.to(device))).backward()
                count += 1
                _add_squares(scores, scored, count)
    if count == 0:
        raise ValueError("there are no batches: Fisher information needs at least one example")
    for score in scores.values():
        local_tensor(score).div_(count)
    if sharded:
        _broadcast_unsharded(scores)
    return scores


def top_fraction_masks(scores: dict[str, torch.Tensor], reserve_p: float) -> dict[str, torch.Tensor]:
    """Masks of the fraction `reserve_p` of largest scores, over all parameters together.

    Ties at the threshold are kept by name, then by flat index, however the scores are sharded. Scores of 0 are kept
    only if `reserve_p` is 1, because a choice among them would be arbitrary; a UserWarning says so.

    Args:
        scores: finite, non-negative float32 scores by parameter name, plain or sharded. With sharded scores every
            process must call this.
        reserve_p: fraction to keep, in (0, 1]: exactly `round(reserve_p * n)` of n elements, and at least one.

    Returns:
        A bool tensor for each score, sharded as that is.

    Raises:
        ValueError: `reserve_p` is not in (0, 1], or scores are missing, all zero, negative or not finite.
    """
    validate_fraction(reserve_p)
    for name, score in scores.items():
        local = local_tensor(score)
        if local.dtype != torch.float32 or not (local.isfinite() & (local >= 0)).all():
            raise ValueError(f"{name}: its scores must be finite, non-negative float32 numbers")
    counted = _counted_here(scores)
    upper = _histogram(scores, counted, lambda bits: bits >> 16)
    total = int(upper.sum())
    if total == 0:
        raise ValueError("there are no scores to choose from: are all parameters frozen or excluded?")
    positive = total - int(_histogram(scores, counted, lambda bits: (bits == 0).int())[1])
    if positive == 0:
        raise ValueError(
            "all scores are zero, so no weight is more important than another: does the loss depend on them?"
        )
    if reserve_p == 1:
        return {name: wrap_like(local_tensor(s) >= 0, s) for name, s in scores.items()}
    n_kept = min(max(1, round(reserve_p * total)), positive)
    if n_kept < round(reserve_p * total):
        warnings.warn(
            f"only {positive:,} of {total:,} scores are above zero: the child is {positive / total:.2%} of the "
            f"weights instead of {reserve_p:.2%}; use more or more varied data",
            stacklevel=3,
        )
    high, above = _bin_of(upper, n_kept)
    lower = _histogram(scores, counted, lambda bits: bits[bits >> 16 == high] & 0xFFFF)
    low, more = _bin_of(lower, n_kept - above)
    bits = high << 16 | low
    ends = _ends_of_ties(scores, counted, bits, n_kept - above - more)
    return {name: wrap_like(_top_mask(s, bits, ends[name]), s) for name, s in scores.items()}


def save_masks(masks: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Write unsharded masks to a safetensors file, under their names without wrapper prefixes.

    With sharded masks every process must call this; rank 0 writes. Raises ValueError where a tensor is not bool.
    """
    sharded = _any_sharded(masks)
    writes = not sharded or dist.get_rank() == 0
    unsharded = {}
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise ValueError(f"{name}: a mask must be torch.bool, not {mask.dtype}")
        # All processes take part in the all-gather, but only one keeps the result.
        mask = mask.full_tensor() if isinstance(mask, DTensor) else mask
        if writes:
            unsharded[clean_name(name)] = mask.contiguous().cpu()
    if writes:
        save_file(unsharded, path)
    if sharded:
        dist.barrier()


def load_masks(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the file of `save_masks`: unsharded bool tensors on the CPU by name.

    Raises ValueError where the file holds anything else.
    """
    masks = load_file(path)
    if not masks or any(mask.dtype != torch.bool for mask in masks.values()):
        raise ValueError(f"{path} holds no gradient masks: give a file that save_masks wrote")
    return masks


@torch.no_grad()
def _add_squares(scores: dict, scored: dict, count: int) -> None:
    for name, param in scored.items():
        if param.grad is None:
            continue
        grad = local_gradient(param).float()
        if not grad.isfinite().all():
            raise ValueError(
                f"{name}: its gradient is not finite in example or batch {count}: is every label of it ignored?"
            )
        local_tensor(scores[name]).addcmul_(grad, grad)


def _scored_parameters(model: torch.nn.Module, exclude: tuple[str, ...]) -> dict[str, torch.nn.Parameter]:
    params = {clean_name(name): param for name, param in model.named_parameters()}
    for pattern in exclude:
        if not any(re.search(pattern, name) for name in params):
            raise ValueError(f"no parameter name contains {pattern!r}; the first ones are {list(params)[:5]}")
    scored = {
        name: param
        for name, param in params.items()
        if param.requires_grad and not any(re.search(pattern, name) for pattern in exclude)
    }
    if not scored:
        raise ValueError("every parameter is frozen or excluded: there is nothing to choose a child from")
    return scored


def _model_loss(model: torch.nn.Module, batch: Mapping) -> torch.Tensor:
    loss = model(**batch).loss
    if loss is None:
        raise ValueError(f"the model gives no loss for a batch of {sorted(batch)}: add labels, or pass loss=")
    return loss


def _examples(batch: Any) -> Iterable:
    """Split a batch into batches of one example."""
    sizes = []
    _map(batch, lambda tensor: sizes.append(len(tensor)) if tensor.dim() else None)
    if len(set(sizes)) != 1:
        raise ValueError(
            f'the tensors of a batch have {sizes} rows: give each of them one row per example, or use per="batch"'
        )
    return [_map(batch, lambda t, i=i: t[i : i + 1] if t.dim() else t) for i in range(sizes[0])]


def _map(batch: Any, function: Callable) -> Any:
    if isinstance(batch, torch.Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: _map(value, function) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_map(value, function) for value in batch)
    return batch


@contextmanager
def _preserve_grads_and_mode(model: torch.nn.Module, eval_mode: bool) -> Iterator[None]:
    """Restore gradients and each module's training mode when the block exits."""
    grads = [(param, param.grad) for param in model.parameters()]
    with preserve_modes(model), torch.enable_grad():
        model.train(not eval_mode)
        try:
            yield
        finally:
            for param, grad in grads:
                param.grad = grad


def _check_identical_batches(batches: Iterable) -> Iterator:
    """Yield the batches, and raise ValueError where processes differ: one with fewer would block the others."""
    batches, end = iter(batches), object()
    while True:
        batch, digest = next(batches, end), hashlib.blake2b()
        _map(batch, lambda tensor, digest=digest: digest.update(repr(tensor.tolist()).encode()))
        digests = [None] * dist.get_world_size()
        dist.all_gather_object(digests, (batch is end, digest.hexdigest()))
        if len(set(digests)) > 1:
            raise ValueError("processes have different batches: under sharding, give all of them the same")
        if batch is end:
            return
        yield batch


def _broadcast_unsharded(scores: dict[str, torch.Tensor]) -> None:
    """Give every process rank 0's scores of unsharded parameters, because ranks differ by rounding."""
    for score in scores.values():
        if not isinstance(score, DTensor):
            dist.broadcast(score, 0)


def _histogram(scores: dict[str, torch.Tensor], counted: set[str], digits) -> torch.Tensor:
    """How often each value below 65,536 occurs in `digits(bits)`, over all processes: int64 [65,536]."""
    device = next((score.device for score in scores.values()), torch.device("cpu"))
    counts = torch.zeros(1 << 16, dtype=torch.int64, device=device)
    for name in counted:
        for block in local_tensor(scores[name]).reshape(-1).split(_BLOCK):
            counts += torch.bincount(digits(block.view(torch.int32)), minlength=1 << 16).to(device)
    if _any_sharded(scores):
        dist.all_reduce(counts)
    return counts.cpu()


def _counted_here(scores: dict[str, torch.Tensor]) -> set[str]:
    """Names of the scores that this process counts: it is the first of those that hold the same part.

    Placements do not show who else holds it: with FSDP and tensor parallelism together, a tensor that only FSDP shards
    lies on a mesh of its own, and several such meshes hold equal copies.
    """
    if not _any_sharded(scores):
        return set(scores)
    mine = [local_chunk(s) if isinstance(s, DTensor) else tuple(s.shape) for s in scores.values()]
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    first = [[other[i] for other in parts].index(part) for i, part in enumerate(mine)]
    return {name for name, rank in zip(scores, first, strict=True) if rank == dist.get_rank()}


def _any_sharded(tensors: Mapping[str, torch.Tensor]) -> bool:
    return any(isinstance(tensor, DTensor) for tensor in tensors.values())


def _bin_of(histogram: torch.Tensor, n_kept: int) -> tuple[int, int]:
    """The bin that holds the `n_kept`-th largest value, and how many values lie in the bins above it."""
    at_least = histogram.flip(0).cumsum(0).flip(0)
    found = int((at_least >= n_kept).nonzero()[-1])
    return found, int(at_least[found] - histogram[found])


def _ends_of_ties(scores: dict[str, torch.Tensor], counted: set[str], bits: int, keep: int) -> dict[str, int]:
    """For each name the flat index before which scores equal to the threshold are kept: `keep` in all."""
    names = sorted(scores, key=clean_name)
    tied = [_tied_indices(scores[name], bits) if name in counted else None for name in names]
    ends = {}
    for name, mine, count in zip(names, tied, _sums([0 if t is None else len(t) for t in tied], scores), strict=True):
        if keep >= count:
            ends[name], keep = scores[name].numel(), keep - count
            continue
        # The first `keep` of this name. Found by bisection, because the indices lie on several processes and may be
        # many: `end` is the least index before which there are `keep`.
        low, end = 0, scores[name].numel()
        while low < end:
            middle = (low + end) // 2
            (before,) = _sums([0 if mine is None else int((mine < middle).sum())], scores)
            low, end = (low, middle) if before >= keep else (middle + 1, end)
        ends[name], keep = end, 0
    return ends


def _tied_indices(score: torch.Tensor, bits: int) -> torch.Tensor:
    """Flat indices, in the whole tensor, of the local scores equal to the threshold: int64, ascending."""
    local, shape = local_tensor(score), tuple(score.shape) or (1,)
    offsets = local_chunk(score)[1] if isinstance(score, DTensor) else (0,) * len(shape)
    equal = (local.view(torch.int32) == bits).reshape(local.shape or (1,))
    flat = torch.zeros((), dtype=torch.int64, device=local.device)
    for index, offset, size in zip(equal.nonzero(as_tuple=True), offsets, shape, strict=True):
        flat = flat * size + index + offset
    return flat


def _top_mask(score: torch.Tensor, bits: int, end: int) -> torch.Tensor:
    """The local part of a mask: scores above the threshold, and those equal to it before the flat index `end`."""
    local = local_tensor(score).view(torch.int32)
    if end >= score.numel():
        return local >= bits
    mask = local > bits
    if end:
        mask[local == bits] = _tied_indices(score, bits) < end
    return mask


def _sums(numbers: list[int], scores: dict[str, torch.Tensor]) -> list[int]:
    """Each number summed over all processes, if the scores are sharded."""
    if not _any_sharded(scores):
        return numbers
    device = next(iter(scores.values())).device
    sums = torch.tensor(numbers, dtype=torch.int64, device=device)
    dist.all_reduce(sums)
    return sums.tolist()
