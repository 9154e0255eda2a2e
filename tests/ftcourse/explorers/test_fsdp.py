"""The picture of gathered bytes: what it draws is what it was given, and its slider moves it."""

import pytest

from ftcourse.explorers.fsdp import gather_explorer, plot_gathered

HELD = {"whole model": [0, 9000, 9000], "each layer": [0, 3000, 4000]}
MOMENTS = ["before", "in layer 0", "in layer 1"]


def test_lines_are_the_bytes_given():
    ax = plot_gathered(HELD, MOMENTS, moment=1)
    lines = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert lines["whole model"] == [0, 9, 9] and lines["each layer"] == [0, 3, 4]
    assert ax.get_title() == "in layer 0" and len({line.get_linestyle() for line in ax.lines[::2]}) > 1


def test_the_slider_moves_the_picture():
    explorer = gather_explorer(HELD, MOMENTS)
    before = explorer.picture.value
    assert explorer.here == {"whole model": 0, "each layer": 0}
    explorer.slider.value = 2
    assert explorer.here == {"whole model": 9000, "each layer": 4000}
    assert explorer.picture.value != before and "each layer: 4 kB" in explorer.picture.value
    assert "3 moments" in repr(explorer)


@pytest.mark.parametrize("held", [{}, {"one": [1, 2]}])
def test_bytes_for_each_moment_are_wanted(held):
    with pytest.raises(ValueError, match="each of 3 moments"):
        gather_explorer(held, MOMENTS)
