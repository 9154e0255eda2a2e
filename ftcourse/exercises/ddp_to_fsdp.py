"""Checkers for 13_ddp_to_fsdp: a wrapping chosen by measuring, and the collective at which ranks fell out of step."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from . import WrongAnswer, checker, require_answer

TOLERANCE = 1e-4  # of gradients, relative to the largest entry of each tensor


class Measured(NamedTuple):
    """A training step of one way of wrapping: bytes at the peak, collectives, distance from right gradients."""

    peak: int
    collectives: int
    error: float


MADE_UP = {
    "a": Measured(900, 2, 1e-7),  # too large
    "b": Measured(300, 14, 1e-7),  # fits, and sends more than c
    "c": Measured(400, 10, 2e-6),
    "d": Measured(350, 9, 1.0),  # wrong gradients
    "e": Measured(320, 5, math.nan),
    "f": Measured(500, 12, 1e-7),
}
LIMIT = 500


def best_of(table: Mapping[str, Measured], limit: int) -> str | None:
    good = {name: found for name, found in table.items() if found.peak <= limit and found.error < TOLERANCE}
    return min(good, key=lambda name: good[name].collectives, default=None)


@checker
def check_choose_wrapping(
    choose_wrapping: Callable,
    measure: Callable[[str], Sequence] | None = None,
    names: Sequence[str] = (),
    limit: int = 0,
) -> str:
    """Check `choose_wrapping(measure, names, limit)`: the right gradients and fewest collectives within `limit` bytes.

    It is tried on made-up measurements, then on `measure`, which trains a step on the live ranks.
    """
    chosen, tried = _choose(choose_wrapping, MADE_UP.__getitem__, list(MADE_UP), LIMIT)
    require_answer(chosen)
    hints = {
        "a": "it needs 900 bytes at its peak, and the limit is 500.",
        "b": "it has the lowest peak of those with right gradients, and that was not asked: of all that fit, take the "
        "one with the fewest collectives.",
        "d": "its gradients are as far off as they are large: a fast step that computes something else is no step.",
        "e": "its gradients are not a number: `nan > tolerance` is False, so ask whether the error is below it.",
        "f": "it fits, but another one that fits has fewer collectives.",
    }
    if chosen in hints:
        raise WrongAnswer(f"of made-up measurements, you chose {chosen!r}: {hints[chosen]}")
    if chosen != "c":
        raise WrongAnswer(f"return the name of one of the ways, and you return {chosen!r}.")
    if missing := [name for name in MADE_UP if name not in tried]:
        raise WrongAnswer(f"{missing[0]!r} was never measured: it might have been the best.")
    if len(tried) > len(set(tried)):
        raise WrongAnswer("a way was measured twice: a step is expensive, keep its result.")
    if _choose(choose_wrapping, MADE_UP.__getitem__, list(MADE_UP), 100)[0] is not None:
        raise WrongAnswer("no way fits into 100 bytes: return None then.")
    edge = _choose(choose_wrapping, MADE_UP.__getitem__, ["b", "f"], LIMIT)[0]
    if edge != "f":
        raise WrongAnswer("a peak of exactly the limit fits.")
    if measure is None:
        return "the fewest collectives among those that fit and compute the right gradients."
    table = {name: Measured(*measure(name)) for name in names}
    chosen = _choose(choose_wrapping, table.__getitem__, list(names), limit)[0]
    expected = best_of(table, limit)
    if chosen != expected:
        raise WrongAnswer(
            f"on the live ranks {expected!r} is best within {limit / 1e6:.1f} MB, and you chose {chosen!r}."
        )
    found = table[expected]
    return (
        f"on the live ranks it is {expected!r}: {found.peak / 1e6:.2f} MB at the peak and {found.collectives} "
        f"collectives, within {limit / 1e6:.1f} MB."
    )


def _choose(answer: Callable, measure: Callable, names: list[str], limit: int) -> tuple[Any, list[str]]:
    """What the answer chooses, and what it measured."""
    tried: list[str] = []

    def counted(name: str) -> Measured:
        tried.append(name)
        return measure(name)

    return answer(counted, names, limit), tried


def _entries(names: Sequence[str], first: int = 1) -> list[dict]:
    """Entries of a flight recorder: a collective each."""
    return [
        {"collective_seq_id": first + n, "profiling_name": f"gloo:{name}", "input_sizes": [[8]]}
        for n, name in enumerate(names)
    ]


STEP = ["all_gather", "all_gather", "reduce_scatter", "reduce_scatter", "all_reduce"]
DESYNC = {  # case -> entries of each rank, the answer
    "rank 2 stopped": ({0: _entries(STEP), 1: _entries(STEP), 2: _entries(STEP[:3]), 3: _entries(STEP)}, (4, [2])),
    "two ranks stopped": ({0: _entries(STEP[:2]), 1: _entries(STEP), 2: _entries(STEP[:4])}, (3, [0])),
    "another collective": ({0: _entries(STEP), 1: _entries([*STEP[:3], "broadcast", "all_reduce"])}, (4, [])),
    "in step": ({0: _entries(STEP), 1: _entries(STEP)}, None),
    "oldest dropped": ({0: _entries(STEP[2:], first=3), 1: _entries(STEP)}, None),
}
DESYNC_HINTS = {
    "rank 2 stopped": "ranks 0, 1 and 3 entered collective 4 and rank 2 did not: (4, [2])",
    "two ranks stopped": "rank 0 stopped after 2 collectives, rank 2 after 4: the first that is missing is 3, and at "
    "that point only rank 0 is: (3, [0])",
    "another collective": "both ranks entered collective 4, rank 0 a reduce_scatter and rank 1 a broadcast: nobody is "
    "missing, so (4, [])",
    "in step": "all ranks entered the same collectives: None",
    "oldest dropped": "rank 0's buffer is full and has dropped its oldest entries, 1 and 2. They were entered, so "
    "begin where all ranks have entries: None",
}


@checker
def check_find_desync(find_desync: Callable, recorded: Mapping[int, list[dict]] | None = None) -> str:
    """Check `find_desync(dumps)`: (sequence number, ranks that never entered it) of the first collective out of step.

    It is tried on made-up flight recorders, then on `recorded`, those of the live ranks.
    """
    for case, (dumps, expected) in DESYNC.items():
        found = find_desync({rank: [dict(entry) for entry in entries] for rank, entries in dumps.items()})
        if case == "rank 2 stopped":
            require_answer(found)
        if _plain(found) != expected:
            raise WrongAnswer(f"{case}: {DESYNC_HINTS[case]}, and you return {found}.")
    if recorded is None:
        return "the first collective that not all ranks entered alike, and who is missing."
    found, expected = _plain(find_desync(recorded)), desync(recorded)
    if found != expected:
        raise WrongAnswer(f"on the live ranks: expected {expected}, and you return {found}.")
    seq, missing = expected
    return f"on the live ranks, rank {missing[0]} never entered collective {seq}."


def desync(dumps: Mapping[int, list[dict]]) -> tuple[int, list[int]] | None:
    entered = {
        rank: {entry["collective_seq_id"]: (entry["profiling_name"], str(entry["input_sizes"])) for entry in entries}
        for rank, entries in dumps.items()
    }
    first = max(min(calls) for calls in entered.values())
    for seq in range(first, max(max(calls) for calls in entered.values()) + 1):
        calls = [entered[rank].get(seq) for rank in sorted(entered)]
        if len(set(calls)) > 1:
            return seq, [rank for rank in sorted(entered) if seq not in entered[rank]]
    return None


def _plain(found):
    """A tuple of a number and a list, where the answer is such a pair of any kind."""
    if isinstance(found, tuple | list) and len(found) == 2 and isinstance(found[1], tuple | list | set):
        return found[0], sorted(found[1])
    return found
