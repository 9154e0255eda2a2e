"""Draw a stored run at random, and compare it with the same run made again."""

import math
import os
import random
from collections.abc import Sequence

import pytest


def draw(records: Sequence[dict]) -> dict:
    """One of the quicker half of the records. A failure shows the seed; FTKIT_DRAW sets it, to draw the same again."""
    seed = int(os.environ.get("FTKIT_DRAW", random.randrange(10**6)))
    print(f"drawn with FTKIT_DRAW={seed}")
    quick = sorted(records, key=lambda record: record.get("seconds", record.get("cpu_seconds", 0)))
    return random.Random(seed).choice(quick[: max(1, len(quick) // 2)])


def assert_repeats(stored: dict, again: dict, others: Sequence[dict] = ()) -> None:
    """Assert that a run made again agrees with its record, and that `others`, of other seeds, do not, but by chance.

    Processors round otherwise, and training magnifies that. The losses of the first three steps, where recorded (as
    `first_losses`, or at the beginning of `train_loss`), agree within a thousandth. At the end of 60 to 200 steps,
    losses agree within 15 % and fractions within 0.08: less than half of what a learning rate three times as high or
    as low changes.
    """
    assert not any(isinstance(stored[m], float) and not math.isfinite(stored[m]) for m in stored if "_loss" in m)
    for measure, value in stored.items():
        if measure.endswith("_exact"):
            assert again[measure] == pytest.approx(value, abs=0.08), (measure, stored)
        elif measure.endswith("_loss") and isinstance(value, float):
            assert again[measure] == pytest.approx(value, rel=0.15), (measure, stored)
    if steps := next((name for name in ("first_losses", "train_loss") if name in stored), ""):
        first = [sum(record[steps][:3]) for record in (stored, again)]
        assert first[1] == pytest.approx(first[0], rel=1e-3), stored
        if others:
            assert any(sum(other[steps][:3]) != pytest.approx(first[0], rel=1e-3) for other in others)
