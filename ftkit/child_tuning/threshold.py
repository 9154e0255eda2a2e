"""The largest scores of a whole model: one threshold over all parameters and all processes.

`torch.quantile` refuses more than 16 million elements, and a sort needs a copy of everything. Non-negative
floats are ordered like their bits read as integers, so two histograms find the exact threshold: one of the
upper sixteen bits, and one of the lower sixteen of those scores whose upper bits are the threshold's.
"""

import warnings

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from ..torch_private import local_chunk
from .masks import clean_name
from .sharding import local_tensor, wrap_like

_BLOCK = 1 << 22  # elements whose bits are looked at in one go


def top_masks(scores: dict[str, torch.Tensor], reserve_p: float) -> dict[str, torch.Tensor]:
    """Masks of the `reserve_p` largest scores of all parameters together.

    Args:
        scores: finite float32 scores, none negative, by parameter name; plain or sharded. With sharded ones
            every process must call this.
        reserve_p: share of all elements to keep, in (0, 1]: exactly `round(reserve_p * n)` of n elements. Of
            equal scores at the threshold those with the first names are kept, and within a name those with the
            lowest flat index, however the scores are sharded. An element of score 0 is kept only if `reserve_p`
            is 1: it would be an arbitrary choice.

    Returns:
        A bool tensor for each of the scores, sharded as those are.

    Raises:
        ValueError: `reserve_p` is not in (0, 1], or scores are missing, all zero, negative or not finite.
    """
    check_share(reserve_p)
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
            "all scores are zero, so no weight is better than another: does the loss depend on them?"
        )
    if reserve_p == 1:
        return {name: wrap_like(local_tensor(s) >= 0, s) for name, s in scores.items()}
    wanted = min(max(1, round(reserve_p * total)), positive)
    if wanted < round(reserve_p * total):
        warnings.warn(
            f"only {positive:,} of {total:,} scores are above zero: the child is {positive / total:.2%} of the "
            f"weights instead of {reserve_p:.2%}; use more or more varied data",
            stacklevel=3,
        )
    high, above = _bin_of(upper, wanted)
    lower = _histogram(scores, counted, lambda bits: bits[bits >> 16 == high] & 0xFFFF)
    low, more = _bin_of(lower, wanted - above)
    bits = high << 16 | low
    ends = _ends_of_ties(scores, counted, bits, wanted - above - more)
    return {name: wrap_like(_mask(s, bits, ends[name]), s) for name, s in scores.items()}


def check_share(reserve_p: float) -> None:
    """Refuse what is no share of the weights."""
    if not 0 < reserve_p <= 1:
        raise ValueError(
            f"reserve_p must be in (0, 1], but is {reserve_p}: it is the share of weights to keep"
        )


def _histogram(scores: dict[str, torch.Tensor], counted: set[str], digits) -> torch.Tensor:
    """How often each value from 0 to 65,535 occurs in `digits(bits)`, over all processes: int64 [65,536]."""
    device = next((score.device for score in scores.values()), torch.device("cpu"))
    counts = torch.zeros(1 << 16, dtype=torch.int64, device=device)
    for name in counted:
        for block in local_tensor(scores[name]).reshape(-1).split(_BLOCK):
            counts += torch.bincount(digits(block.view(torch.int32)), minlength=1 << 16).to(device)
    if _any_sharded(scores):
        dist.all_reduce(counts)
    return counts.cpu()


def _counted_here(scores: dict[str, torch.Tensor]) -> set[str]:
    """The scores that this process counts: of all processes with the same part of one, the first does.

    The placements of a tensor do not tell who else has a part of it: with FSDP and tensor parallelism
    together, what only FSDP shards lies on a mesh of its own, and several such meshes have equal copies.
    """
    if not _any_sharded(scores):
        return set(scores)
    mine = [local_chunk(s) if isinstance(s, DTensor) else tuple(s.shape) for s in scores.values()]
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    first = [[other[i] for other in parts].index(part) for i, part in enumerate(mine)]
    return {name for name, rank in zip(scores, first, strict=True) if rank == dist.get_rank()}


def _any_sharded(scores: dict[str, torch.Tensor]) -> bool:
    return any(isinstance(score, DTensor) for score in scores.values())


def _bin_of(histogram: torch.Tensor, wanted: int) -> tuple[int, int]:
    """The bin that holds the `wanted`-th largest value, and how many values lie in the bins above it."""
    at_least = histogram.flip(0).cumsum(0).flip(0)
    found = int((at_least >= wanted).nonzero()[-1])
    return found, int(at_least[found] - histogram[found])


def _ends_of_ties(scores: dict[str, torch.Tensor], counted: set[str], bits: int, keep: int) -> dict[str, int]:
    """The flat index before which each name's scores equal to the threshold are kept: `keep` of them in all."""
    names = sorted(scores, key=clean_name)
    tied = [_tied_indices(scores[name], bits) if name in counted else None for name in names]
    ends = {}
    for name, mine, count in zip(
        names, tied, _sums([0 if t is None else len(t) for t in tied], scores), strict=True
    ):
        if keep >= count:
            ends[name], keep = scores[name].numel(), keep - count
            continue
        # The first `keep` of this name, and none of the names after it. Found by bisection, since the indices lie on
        # several processes and may be many: `end` is the least before which there are `keep`.
        low, end = 0, scores[name].numel()
        while low < end:
            middle = (low + end) // 2
            (before,) = _sums([0 if mine is None else int((mine < middle).sum())], scores)
            low, end = (low, middle) if before >= keep else (middle + 1, end)
        ends[name], keep = end, 0
    return ends


def _tied_indices(score: torch.Tensor, bits: int) -> torch.Tensor:
    """Flat indices in the whole tensor of this process's scores equal to the threshold: int64, ascending."""
    local, shape = local_tensor(score), tuple(score.shape) or (1,)
    offsets = local_chunk(score)[1] if isinstance(score, DTensor) else (0,) * len(shape)
    equal = (local.view(torch.int32) == bits).reshape(local.shape or (1,))
    flat = torch.zeros((), dtype=torch.int64, device=local.device)
    for index, offset, size in zip(equal.nonzero(as_tuple=True), offsets, shape, strict=True):
        flat = flat * size + index + offset
    return flat


def _mask(score: torch.Tensor, bits: int, end: int) -> torch.Tensor:
    """This process's part of a mask: scores above the threshold, and those equal to it before the flat index `end`."""
    local = local_tensor(score).view(torch.int32)
    if end >= score.numel():
        return local >= bits
    mask = local > bits
    if end:
        mask[local == bits] = _tied_indices(score, bits) < end
    return mask


def _sums(numbers: list[int], scores: dict[str, torch.Tensor]) -> list[int]:
    """Each number's sum over all processes, where the scores are sharded."""
    if not _any_sharded(scores):
        return numbers
    device = next(iter(scores.values())).device
    sums = torch.tensor(numbers, dtype=torch.int64, device=device)
    dist.all_reduce(sums)
    return sums.tolist()
