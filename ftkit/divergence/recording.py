"""Read what `record` wrote: the tensors of a run, put together from its ranks."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from .recorder import OUTPUT

REMEDY = {
    "rank": "record the run: `ftkit finetune --record 3`, or ftkit.divergence.record around a loop of your own",
    "rounding": "record the reference once more, from the same beginning and into the same folder, with rounding=True: "
    "that measures how far rounding leads",
}


@dataclass(frozen=True)
class Part:
    """The rows of a tensor that one rank has, or that several have together (rank None)."""

    rank: int | None
    keys: np.ndarray  # (N,) ascending
    lines: np.ndarray  # (N, PROJECTIONS)

    def at(self, keys: np.ndarray) -> np.ndarray:
        return self.lines[np.searchsorted(self.keys, keys)]


class Recording:
    """The recording in a folder: of the run, or (`what="rounding"`) of its repetition with noise.

    Raises ValueError for a folder without a complete one.
    """

    def __init__(self, folder: str | Path, what: str = "rank"):
        self.ranks, self.settings, self.facts, found, rank = 1, defaultdict(dict), {}, defaultdict(list), 0
        while rank < self.ranks:
            path = Path(folder) / f"{what}-{rank}.safetensors"
            if not path.is_file():
                raise ValueError(f"{path} is missing: {REMEDY[what]}")
            try:
                with safe_open(path, "np") as file:
                    about = json.loads(file.metadata()["recording"])
                    for number, entry in enumerate(about["entries"]):
                        key = entry["step"], entry["kind"], entry["name"]
                        self.facts.setdefault(key, entry)
                        tensors = file.get_tensor(f"{number}.keys"), file.get_tensor(f"{number}.lines")
                        found[key].append((rank, *entry["columns"], *tensors))
            except (SafetensorError, TypeError, KeyError) as error:
                raise ValueError(f"{path} is not a recording ({error}): {REMEDY[what]}") from None
            for step, settings in about["settings"].items():
                self.settings[int(step)] |= settings
            self.ranks, self.steps, rank = about["ranks"], range(*about["steps"]), rank + 1
        self.parts = {key: assemble(pieces) for key, pieces in found.items()}

    def names(self, step: int, kind: str) -> list[str]:
        """Of the recorded tensors, in the order of execution."""
        return [name for s, k, name in self.facts if (s, k) == (step, kind)]

    def width(self, key: tuple) -> int:
        """Columns of the whole tensor; 0 where there is none."""
        return self.facts[key]["columns"][2] if key in self.facts else 0

    def whole(self, key: tuple) -> Part:
        """All rows of a tensor, each from the first rank that has it."""
        parts = self.parts[key]
        if len(parts) == 1:
            return parts[0]
        keys, first = np.unique(np.concatenate([part.keys for part in parts]), return_index=True)
        return Part(None, keys, np.concatenate([part.lines for part in parts])[first])

    def moved(self, key: tuple, keys: np.ndarray) -> np.ndarray:
        """Which rows of a parameter the step before `key` changed."""
        before = (key[0] - 1, *key[1:])
        if before not in self.parts:
            return np.zeros(len(keys), bool)
        return (self.whole(before).at(keys) != self.whole(key).at(keys)).any(1)

    def shares(self, step: int) -> int:
        """Into how many shares the ranks split the batch of a step: those of one share see the same tokens."""
        for name in self.names(step, OUTPUT):
            if tokens := {part.keys.tobytes() for part in self.parts[step, OUTPUT, name] if part.rank is not None}:
                return len(tokens)
        return 1


def assemble(pieces: list[tuple]) -> list[Part]:
    """The parts of a tensor. Where ranks hold some of its columns, their lines are added up to one part.

    Args:
        pieces: of each rank: its number; offset, number and total of its columns; keys and lines.
    """
    parts, slices = [], defaultdict(list)
    for rank, offset, width, total, keys, lines in pieces:
        if width == total:
            parts.append(Part(rank, *unique_rows(keys, lines)))
        else:
            slices[offset].append((keys, lines))
    if slices:
        each = [unique_rows(*map(np.concatenate, zip(*same, strict=True))) for same in slices.values()]
        parts.append(Part(None, *unique_rows(*map(np.concatenate, zip(*each, strict=True)), mean=False)))
    return parts


def unique_rows(keys: np.ndarray, lines: np.ndarray, mean: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """One line for each key, in ascending order: the mean of its lines, or their sum."""
    order = np.argsort(keys, kind="stable")
    unique, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
    total = np.add.reduceat(lines[order], starts)
    return unique, total / counts[:, None] if mean else total


def shared_keys(first: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """Those that all of them have, in ascending order."""
    for other in others:
        first = first if np.array_equal(first, other) else np.intersect1d(first, other)
    return first
