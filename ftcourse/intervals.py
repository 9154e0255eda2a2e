"""The mean of a few values and its 95 % interval, by Student's t."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# 97.5 % quantiles of Student's t for 1, 2, … degrees of freedom, as in any table of them.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
         2.131, 2.120, 2.110, 2.101, 2.093)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A mean and the 95 % interval of Student's t around it."""

    mean: float
    low: float
    high: float

    def in_own_unit(self, digits: int = 2) -> str:
        """As a difference in the unit of its values."""
        return f"{self.mean:+.{digits}f} ({self.low:+.{digits}f} to {self.high:+.{digits}f})"

    @property
    def points(self) -> str:
        """As a difference in percentage points."""
        mean, low, high = (
            f"{round(100 * bound, 1) + 0.0:+.1f}" for bound in (self.mean, self.low, self.high)
        )  # no -0.0
        return f"{mean} ({low} to {high})"


def interval(values: Sequence[float]) -> Interval:
    """Raises ValueError for fewer than 2 or more than 20 values."""
    if not 2 <= len(values) <= len(T_975) + 1:
        raise ValueError(f"an interval needs 2 to {len(T_975) + 1} values, and there are {len(values)}")
    mean = statistics.fmean(values)
    half = T_975[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)
