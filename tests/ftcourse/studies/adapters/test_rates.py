"""The search ends at a rate with a worse one on either side, wherever it begins."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcourse.studies.adapters.methods import ARMS, GRID, rates_to_try


def test_the_grid_is_of_half_decades_in_one_digit():
    assert GRID[:4] == [1e-5, 3e-5, 1e-4, 3e-4] and GRID[-2:] == [1.0, 3.0] and len(GRID) == 12
    assert all(2.9 < above / below < 3.5 for below, above in itertools.pairwise(GRID))


@given(st.integers(0, len(GRID) - 1), st.integers(0, len(GRID) - 1))
def test_it_climbs_to_the_one_peak_from_anywhere(peak, start):
    scores = {}
    while todo := rates_to_try(scores, GRID[start]):
        assert not scores.keys() & set(todo)
        scores |= {rate: -abs(GRID.index(rate) - peak) for rate in todo}
    assert max(scores, key=scores.get) == GRID[peak]
    assert {GRID[i] for i in (peak - 1, peak + 1) if 0 <= i < len(GRID)} <= scores.keys()
    assert len(scores) <= abs(peak - start) + 4


def test_the_first_three_are_the_start_and_its_neighbours():
    assert rates_to_try({}, 1e-2) == [3e-3, 1e-2, 3e-2]


def test_a_start_beside_the_grid_is_refused():
    with pytest.raises(ValueError, match=r"0\.02 is no rate of the grid: give one of 1e-05, 3e-05"):
        rates_to_try({}, 0.02)


def test_every_row_begins_on_the_grid():
    assert all(row.start in GRID for row in ARMS.values())
