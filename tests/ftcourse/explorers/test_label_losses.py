"""The bars follow the slider, and the caption says what they show."""

import pytest

from ftcourse.explorers.label_losses import LabelLossExplorer

TOKENS, PLACES = ["Rome", ".", "<|end|>"], ["first", "inside", "last"]
LOSSES = {0: [10.0, 1.0, 24.0], 2: [5.0, 0.5, 7.0]}


def test_the_slider_chooses_the_step():
    explorer = LabelLossExplorer(TOKENS, PLACES, LOSSES)
    assert "first 10.0, inside 1.0, last 24.0" in explorer.caption and "step=0" in repr(explorer)
    before = explorer.picture.value
    explorer.step_slider.value = 2
    assert "Step 2" in explorer.caption and "last 7.0" in explorer.caption and explorer.picture.value != before
    assert "image/svg+xml" in explorer._repr_mimebundle_()


def test_a_place_that_no_label_has_is_left_out():
    explorer = LabelLossExplorer(["Rome"], ["first"], {0: [1.0]})
    assert "inside" not in explorer.caption


def test_lengths_have_to_agree():
    with pytest.raises(ValueError, match="there are 3 tokens"):
        LabelLossExplorer(TOKENS, PLACES[:2], LOSSES)
    with pytest.raises(ValueError, match="there are 3 tokens"):
        LabelLossExplorer(TOKENS, PLACES, {0: [1.0]})
