"""Rates by step against formulas, and the explorer whose slider is the size of the data."""

import math

import pytest

from ftcourse.explorers.schedules import learning_rates, plot_schedules, schedule_explorer
from ftcourse.plots import new_axes


def test_linear_and_cosine_are_their_formulas():
    linear = learning_rates("linear", 4, 20, peak=0.5)
    assert linear == pytest.approx([0.5 * min(s / 4, (20 - s) / 16) for s in range(20)])
    cosine = learning_rates("cosine", 4, 20)
    wanted = [s / 4 if s < 4 else (1 + math.cos(math.pi * (s - 4) / 16)) / 2 for s in range(20)]
    assert cosine == pytest.approx(wanted)
    assert learning_rates("constant", 0, 3, peak=0.1) == [0.1] * 3


def test_a_warmup_longer_than_the_run_never_reaches_the_peak():
    assert max(learning_rates("linear", 100, 60)) == pytest.approx(0.59)


def test_lines_are_told_apart_without_colour():
    ax = plot_schedules({"one": [0, 1], "two": [1, 0], "three": [1, 1]}, ax=new_axes()[1])
    assert len({line.get_linestyle() for line in ax.lines}) == 3


def test_the_explorer_follows_its_slider():
    explorer = schedule_explorer()
    assert explorer.steps == 60 and explorer.reached == pytest.approx(0.59)
    picture = explorer.picture.value
    explorer.slider.value = 1600
    assert explorer.steps == 1000 and explorer.reached == 1
    assert explorer.picture.value != picture and "1600 examples make 1000 steps" in explorer.picture.value
    assert "1600 examples" in repr(explorer)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="must be positive"):
        schedule_explorer(warmup=0)
