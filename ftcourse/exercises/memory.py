"""Checkers for 12_memory: the changes that make a plan fit, the largest micro-batch, and a forward pass in time."""

import math
from collections.abc import Sequence

from . import WrongAnswer, checker, match_known_mistake, require_answer


@checker
def check_largest_micro_batch(largest_micro_batch) -> str:
    """Check `largest_micro_batch(peak_of, capacity)`: rows whose peak, linear in rows, fits."""
    for fixed, per_row, capacity in (
        (100, 7, 150),
        (1_000, 64, 2_000),
        (10, 3, 40),
        (50, 10, 55),
        (50, 10, 20),
    ):
        calls = []

        def peak_of(rows: int, fixed=fixed, per_row=per_row, calls=calls) -> int:
            calls.append(rows)
            return fixed + per_row * rows

        value = require_answer(largest_micro_batch(peak_of, capacity))
        right = max(0, (capacity - fixed) // per_row)
        where = f"{fixed} bytes and {per_row} per row in {capacity}"
        if isinstance(value, float) and not value.is_integer():
            raise WrongAnswer(f"{where}: a number of rows is an integer: round down.")
        if value > right and value == capacity // per_row:
            raise WrongAnswer(f"{where}: first subtract what is there without any row.")
        if value < 0:
            raise WrongAnswer(f"{where}: not even one row fits: return 0.")
        if value == right + 1:
            raise WrongAnswer(f"{where}: {right + 1} rows do not fit: round down.")
        if value != right:
            raise WrongAnswer(f"{where}: {right} rows fit, and you say {value}.")
        if len(calls) > 3:
            raise WrongAnswer(f"you asked for {len(calls)} peaks: the peak is linear in rows, so two are enough.")
    return "two estimates give what is fixed and what a row costs; the rest is a division."


CHANGES = ("fused", "checkpointing", "chunked loss", "8-bit AdamW")  # the first that helps is preferred


def _peak(changes: Sequence[str]) -> int:
    """A made-up model in GiB: the largest of its phases, as a change can lower one and leave the others."""
    states = 40 if "8-bit AdamW" in changes else 60
    activations = 5 if "checkpointing" in changes else 50
    logits = 4 if "chunked loss" in changes else 40
    update = states + (0 if "fused" in changes or "8-bit AdamW" in changes else 15)
    return max(update, states + activations, states + activations // 5 + logits)


@checker
def check_fewest_changes(fewest_changes) -> str:
    """Check `fewest_changes(peak_of, changes, capacity)`: the shortest list of changes under which a plan fits."""
    for capacity, right in (
        (120, []),
        (105, ["checkpointing"]),
        (80, ["checkpointing", "chunked loss"]),
        (70, ["fused", "checkpointing", "chunked loss"]),
        (60, ["checkpointing", "chunked loss", "8-bit AdamW"]),
    ):
        answer, where = list(require_answer(fewest_changes(_peak, CHANGES, capacity))), f"in {capacity} GiB"
        if any(name not in CHANGES for name in answer):
            raise WrongAnswer(f"{where} you return {answer}: names from `changes` are expected.")
        if _peak(answer) > capacity:
            raise WrongAnswer(f"{where} the peak with {answer} is {_peak(answer)} GiB: it does not fit.")
        if len(answer) > len(right):
            raise WrongAnswer(
                f"{where} {' and '.join(right) or 'no change'} would do, and you change {len(answer)} things: a change "
                "that does not lower the peak by itself can still be needed, and one that does can be of no use later."
            )
        if set(answer) != set(right):
            raise WrongAnswer(f"{where} {' and '.join(right)} come first in the list: prefer the cheaper ones.")
    return "tried from none to all; the peak is a maximum, so changes do not simply add up."


@checker
def check_forward_seconds(forward_seconds) -> str:
    """Check `forward_seconds(gather, compute)`: a forward pass that gathers the next layer while one computes."""
    for gather, compute in (([4, 1, 5, 1], [2, 3, 2, 3]), ([1, 1, 1], [3, 3, 3]), ([2, 2], [1, 1])):
        value = float(require_answer(forward_seconds(list(gather), list(compute))))
        now, ahead = float(gather[0]), 0.0
        for i, seconds in enumerate(compute):
            arrives = now + gather[i + 1] if i + 1 < len(gather) else 0.0
            now = max(now + seconds, arrives)
        for i, seconds in enumerate(compute):  # all gathers issued at the start
            ahead = max(ahead, sum(gather[: i + 1])) + seconds
        mistakes = {
            sum(gather) + sum(compute): "that is without overlap: layer i + 1 is gathered while layer i computes.",
            ahead: "you issue every all-gather at the start: that of layer i + 1 is issued when layer i starts.",
            max(sum(gather), sum(compute)): "nothing hides the first all-gather, and no layer computes before its own.",
            sum(compute): "that is compute alone.",
            now - gather[0]: "the first layer has to be gathered, too.",
        }
        if not math.isclose(value, now):
            match_known_mistake(value, mistakes)
            raise WrongAnswer(f"all-gathers of {gather} s and layers of {compute} s take {now:g} s, not {value:g}.")
    return "an all-gather is hidden as long as it is shorter than the layer that computes meanwhile."
