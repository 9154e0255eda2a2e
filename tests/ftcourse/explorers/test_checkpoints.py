"""The interval between checkpoints: formula against chance, the explorer's sliders, and the picture of attempts."""

import math

import pytest
from matplotlib import pyplot

from ftcourse.explorers.checkpoints import (
    IntervalExplorer,
    interval_explorer,
    lost_share,
    plot_attempts,
    simulate_lost_share,
    young_interval,
)
from ftcourse.plots import new_axes

WRITE, BETWEEN, RESTART = 20.0, 7200.0, 60.0


def test_youngs_interval_is_the_formulas_minimum():
    best = young_interval(WRITE, BETWEEN)
    shares = [lost_share(best * factor, WRITE, BETWEEN, RESTART) for factor in (0.9, 1, 1.1)]
    assert min(shares) == shares[1] == pytest.approx(math.sqrt(2 * WRITE / BETWEEN) + RESTART / BETWEEN)


def test_chance_agrees_with_the_formula_where_failures_are_rare():
    best = young_interval(1.0, 1e6)
    found = simulate_lost_share(best, 1.0, 1e6, RESTART, segments=100_000)
    assert found == pytest.approx(lost_share(best, 1.0, 1e6, RESTART), rel=0.1)
    assert simulate_lost_share(best, 1.0, 1e30, RESTART, segments=10) == pytest.approx(1 / (best + 1), rel=1e-6)


def test_the_explorer_follows_its_sliders():
    explorer = interval_explorer()
    picture = explorer.picture.value
    assert explorer.best == pytest.approx(math.sqrt(2 * 30 * 21_600) / 60)
    explorer.failures.value = 16
    assert explorer.best == pytest.approx(math.sqrt(2 * 30 * 5_400) / 60)
    explorer.restart.value = 0
    assert explorer.lost == pytest.approx(math.sqrt(2 * 30 / 5_400))
    assert explorer.picture.value != picture and "16 failures a day" in repr(explorer)


@pytest.mark.parametrize(
    ("write", "failures", "restart"), [(30, 4, 5), (1, 48, 0), (300, 48, 60), (120, 16, 40), (300, 1, 0)]
)
def test_the_mark_and_its_words_are_in_view_whatever_is_lost(write, failures, restart, monkeypatch):
    drawn = []
    monkeypatch.setattr(IntervalExplorer, "captioned", lambda self, figure, text: drawn.append((figure, text)) or "")
    explorer = IntervalExplorer(write, failures, restart)
    figure, text = drawn[0]
    figure.draw_without_rendering()
    (ax,) = figure.axes
    (point,) = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert ax.get_ylim()[0] <= point.get_ydata()[0] <= min(100, ax.get_ylim()[1])
    curve, words = ax.transData.transform(ax.lines[0].get_xydata()), (ax.title, *ax.texts)
    assert f"every {explorer.best:.0f} min" in " ".join(text.get_text() for text in words)
    for box in (text.get_window_extent() for text in words):
        assert not [point for point in curve if box.contains(*point) and ax.bbox.contains(*point)]  # they cross
    pyplot.close(figure)
    assert max(ax.get_yticks()) <= 100 and text.startswith(f"write {write} s, {failures} failures a day")


def test_attempts_are_told_apart_without_colour():
    ax = plot_attempts([[1, 2, 3], [3, 4, 5, 6]], killed=4, save_every=2, ax=new_axes()[1])
    lines = [line for line in ax.lines if len(line.get_xdata()) > 2]
    assert len({line.get_marker() for line in lines}) == 2
    assert [text.get_text() for text in ax.texts] == ["SIGKILL"]
