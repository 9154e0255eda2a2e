"""Intervals against the density of Student's t, and by hand."""

import math
import statistics

import pytest

from ftcourse.intervals import T_975, Interval, interval


def test_an_interval_is_student_s():
    """Against the density of t, integrated: 97.5 % of it lies below each tabled quantile."""
    for freedom, quantile in enumerate(T_975, start=1):
        factor = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
        steps = 2_000
        width = quantile / steps
        density = [factor * (1 + ((i + 0.5) * width) ** 2 / freedom) ** (-(freedom + 1) / 2) for i in range(steps)]
        assert 0.5 + sum(density) * width == pytest.approx(0.975, abs=3e-5), freedom  # three decimals
    found = interval([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5
    assert found.high - 2.5 == pytest.approx(3.182 * statistics.stdev([1, 2, 3, 4]) / 2)
    assert found.low + found.high == pytest.approx(5)
    for values in ([1.0], [0.0] * 21):
        with pytest.raises(ValueError, match="needs 2 to 20 values"):
            interval(values)
    assert interval([0.01, 0.02]).points == "+1.5 (-4.9 to +7.9)"
    assert Interval(-0.021, -0.04, 0.01).in_own_unit() == "-0.02 (-0.04 to +0.01)"
    assert Interval(0.0004, -0.0001, 0.0008).points == "+0.0 (+0.0 to +0.1)", "no -0.0"
