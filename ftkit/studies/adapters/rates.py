"""The search for a learning rate: half a decade up or down until the best one has a worse one on either side."""

from collections.abc import Mapping
from typing import Any

STEPS = range(-10, 2)  # half decades: 1e-5, 3e-5, 1e-4, … 3


def rate(step: int) -> float:
    """10**(step / 2), to one digit: 1e-5, 3e-5, 1e-4."""
    return float(f"{3 if step % 2 else 1}e{step // 2}")


GRID = [rate(step) for step in STEPS]


def rates_to_try(scores: Mapping[float, Any], start: float) -> list[float]:
    """Which rates of GRID to try next, given the scores (higher is better) of those tried; [] when the best of them
    has both its neighbours tried.

    Raises ValueError for a start that is not in GRID.
    """
    if start not in GRID:
        raise ValueError(f"{start:g} is no rate of the grid: give one of {', '.join(f'{r:g}' for r in GRID)}")
    centre = GRID.index(max(scores, key=scores.__getitem__) if scores else start)
    around = GRID[max(centre - 1, 0) : centre + 2]
    return [r for r in around if r not in scores]
