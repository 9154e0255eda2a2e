"""The pictures of a step and of held bytes: what they draw is what they were given, and the slider moves it."""

import pytest

from ftcourse.explorers.fsdp import held_explorer, plot_held, plot_step
from ftcourse.fsdp_steps import BACKWARD, COPY, FORWARD, GATHER, RESHARD, SCATTER, Event

EVENTS = [  # a step of one unit
    Event(GATHER, "layer 0", 0, 1),
    Event(COPY, "layer 0", 1, 2),
    Event(FORWARD, "layer 0", 3, 4),
    Event(RESHARD, "layer 0", 5, 6),
    Event(GATHER, "layer 0", 6, 7),
    Event(BACKWARD, "layer 0", 8, 9),
    Event(RESHARD, "layer 0", 9, 10),
    Event(SCATTER, "layer 0", 10, 11),
]
SIZES = {"layer 0": 3_000_000}


def test_a_step_has_a_bar_for_each_event_and_grey_where_a_unit_is_unsharded():
    ax = plot_step(EVENTS, "a step")
    bars = sorted((bar.get_x(), bar.get_width()) for bar in ax.patches)
    assert bars == sorted([(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (0, 2), (2, 2)])  # G F, G B, S; grey to each reshard
    letters = [text.get_text() for text in ax.texts if len(text.get_text()) == 1]
    assert letters == ["G", "F", "G", "B", "S"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["layer 0"]
    assert len({bar.get_hatch() for bar in ax.patches}) > 2  # not by colour alone


def test_lines_are_parameters_and_gradients_with_units_on_the_ticks():
    held = {"whole model": [(3_000_000, 0), (3_000_000, 1_000_000)]}
    at = [event for event in EVENTS if event.kind in (FORWARD, BACKWARD)]
    ax = plot_held(held, at, moment=1)
    (line,) = [line for line in ax.lines if line.get_label() == "whole model"]
    assert list(line.get_ydata()) == [3, 4]
    ax.figure.canvas.draw()
    assert {label.get_text().split()[-1] for label in ax.get_yticklabels()} == {"MB"}
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "0"]


def test_the_slider_moves_the_picture():
    explorer = held_explorer({"one": (EVENTS, SIZES)})
    before = explorer.picture.value
    assert explorer.here == {"one": (3_000_000, 0)} and "layer 0, forward pass" in before
    explorer.slider.value = 1
    assert explorer.here == {"one": (3_000_000, 3_000_000)} and explorer.peak("one") == 6_000_000
    assert explorer.picture.value != before and "3.00 MB of gradients" in explorer.picture.value
    assert "2 moments" in repr(explorer)


@pytest.mark.parametrize("steps", [{}, {"one": (EVENTS, SIZES), "other": (EVENTS[:4], SIZES)}])
def test_steps_whose_modules_differ_are_refused(steps):
    with pytest.raises(ValueError, match="one to three ways"):
        held_explorer(steps)
