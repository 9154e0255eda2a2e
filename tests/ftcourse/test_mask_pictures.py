"""The pictures of gradient masks: equal numbers have equal colours, and what is masked or trains is seen."""

import matplotlib
import pytest
import torch

matplotlib.use("agg")

from ftcourse.mask_pictures import plot_gradients, plot_moved, plot_trained
from ftcourse.plots import figure_svg

GRADIENT = torch.tensor([[0.8, -1.2], [0.5, 2.0]])
KEEP = torch.tensor([[False, True], [False, True]])
SCALED = torch.where(KEEP, GRADIENT / 0.33, 0.0)


def panels(figure):
    return [ax for ax in figure.axes if ax.get_title()]


def test_all_panels_share_one_scale_so_that_rescaling_is_visible():
    figure = plot_gradients({"gradient": GRADIENT, "masked": SCALED}, {"masked": KEEP})
    first, second = (ax.collections[0] for ax in panels(figure))
    assert first.get_clim() == second.get_clim() == pytest.approx((-2 / 0.33, 2 / 0.33))
    colour_of = first.to_rgba
    assert colour_of(2.0) != colour_of(2.0 / 0.33) and colour_of(2.0) == second.to_rgba(2.0)
    red, _, blue, _ = colour_of(2.0)
    assert red > blue and colour_of(-2.0)[0] < colour_of(-2.0)[2]  # the sign is the hue
    assert len(figure.axes) == 3  # with one colour bar
    figure_svg(figure)


def test_dropped_entries_are_hatched_and_lose_their_number():
    ax = panels(plot_gradients({"gradient": GRADIENT, "masked": SCALED}, {"masked": KEEP}))[1]
    assert sorted(text.get_text() for text in ax.texts) == ["-3.64", "6.06"]
    assert [patch.get_hatch() for patch in ax.patches] == ["///", "///"]


@pytest.mark.parametrize("wrong", [{"a": GRADIENT, "b": GRADIENT[:1]}, {"a": GRADIENT.flatten()}])
def test_panels_of_different_shapes_are_refused(wrong):
    with pytest.raises(ValueError, match="one shape"):
        plot_gradients(wrong)


def test_filled_cells_are_the_ones_that_train():
    layers = [torch.zeros(2, 3, dtype=torch.bool), torch.tensor([[True, False, False], [True, True, False]])]
    ax = plot_trained({"freezing": layers}).axes[0]
    filled = [patch.get_facecolor()[:3] != (1, 1, 1) for patch in ax.patches]
    assert filled == [False] * 6 + [True, False, False, True, True, False]
    assert {"freezing", "layer 1: 0% trains", "layer 2: 50% trains"} == {text.get_text() for text in ax.texts}


def test_shares_and_formula_are_drawn_as_given():
    ax = plot_moved([1, 2], {"anew": [0.3, 0.5], "once": [0.3, 0.3]}, [0.3, 0.51])
    assert [list(line.get_ydata()) for line in ax.lines] == [[0.3, 0.51], [0.3, 0.5], [0.3, 0.3]]
    assert len({line.get_marker() for line in ax.lines}) == 3  # apart without colour
