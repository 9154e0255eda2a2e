"""The pictures show what they are given: every seed, every method, and the menu's words say the same."""

import pytest

from ftcourse.explorers.adapter_family import ForgettingExplorer, plot_family, plot_movement
from ftcourse.plots import figure_svg

LINES = [
    {"row": "base model", "lr": 0.0, "forgotten_by_domain": {"capital": 0.0, "sum": 0.0}},
    {"row": "full", "lr": 1e-3, "forgotten_by_domain": {"capital": 0.1, "sum": 0.3}},
    {"row": "lora", "lr": 1e-2, "forgotten_by_domain": {"capital": 0.6, "sum": 0.2}},
    {"row": "head only", "lr": 1e-2, "forgotten_by_domain": {"capital": 0.0, "sum": -0.1}},
]


def test_every_seed_is_a_dot_on_its_method_s_line():
    panels = {
        "exact": {"full": [0.5, 0.6], "lora": [], "dora": [0.4]},
        "loss": {"full": [1.0], "lora": [2.0], "dora": []},
    }
    axes = plot_family(panels, percent=["exact"])
    dots = [[line for line in ax.lines if line.get_marker() == "o"] for ax in axes]
    assert [list(line.get_xdata()) for line in dots[0]] == [[0.5, 0.6], [0.4]]
    assert [set(line.get_ydata()) for line in dots[0]] == [{0}, {2}]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["full", "lora", "dora"]
    assert axes[0].get_ylim()[0] > axes[0].get_ylim()[1]  # the first method on top
    figure_svg(axes[0].figure)


def test_one_panel_is_a_picture_too():
    (ax,) = plot_family({"exact": {"full": [0.5]}})
    assert ax.get_title() == "exact"
    figure_svg(ax.figure)


def test_movement_has_a_sign_for_each_seed():
    axes = plot_movement({"full": [[(0.1, 0.2)], [(0.3, 0.4), (0.5, 0.6)]], "lora": [[(1.0, 2.0)]]})
    assert [len(line.get_xdata()) for line in axes[0].lines] == [1, 2]
    assert len({line.get_marker() for line in axes[0].lines}) == 2
    figure_svg(axes[0].figure)


def test_the_menu_redraws_and_says_it_in_words():
    explorer = ForgettingExplorer(LINES)
    assert explorer.menu.options == ("full", "lora", "head only")  # the base model has nothing to forget
    assert explorer.caption == "lora: 40% of the facts lost, mean over domains, most of capital (60%)."
    before = explorer.picture.value
    explorer.menu.value = "head only"
    assert explorer.caption == "head only: -5% of the facts lost, mean over domains."
    assert explorer.picture.value != before and explorer.caption in explorer.picture.value
    assert explorer.lost == {"capital": 0.0, "sum": -0.1}
    assert "ForgettingExplorer(head only)" in repr(explorer) and "svg" not in repr(explorer)


def test_a_method_that_was_not_compared_is_refused():
    with pytest.raises(Exception, match="Invalid selection"):
        ForgettingExplorer(LINES, row="prefix")
