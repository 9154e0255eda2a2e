"""The mask explorer, driven as a plain cell drives it: by setting values and reading what is shown."""

import xml.dom.minidom

import ipywidgets
import matplotlib
import pytest
import torch

matplotlib.use("agg")

from matplotlib import pyplot

from ftcourse.explorers.answers import answer_explorer
from ftcourse.explorers.fsdp import shard_explorer
from ftcourse.explorers.gradient_masks import MaskExplorer, mask_explorer

GRADIENT = torch.tensor([[0.8, -1.2, 0.3], [0.5, 2.0, -0.7], [-0.4, 0.1, 1.5]])


def svg_of(explorer):
    text = explorer.picture.value
    return xml.dom.minidom.parseString(text[: text.index("</svg>") + len("</svg>")]).documentElement


def test_moving_the_slider_redraws_mask_and_masked_gradient():
    explorer = mask_explorer(GRADIENT)
    before = explorer.picture.value, explorer.mask
    explorer.slider.value = 0.7
    assert explorer.picture.value != before[0]
    # The uniform numbers stay, so a larger reserve_p can only add entries.
    assert bool((explorer.mask | ~before[1]).all())
    assert int(explorer.mask.sum()) > int(before[1].sum())
    torch.testing.assert_close(explorer.masked, GRADIENT * explorer.mask / 0.7)


def test_the_mean_comes_close_to_the_gradient_and_is_it_at_one():
    explorer = mask_explorer(GRADIENT, reserve_p=0.5)
    standard_error = GRADIENT.abs() * ((1 - 0.5) / 0.5 / explorer.draws) ** 0.5
    assert bool(((explorer.mean - GRADIENT).abs() < 4 * standard_error).all())
    explorer.slider.value = 1.0
    torch.testing.assert_close(explorer.mean, GRADIENT)
    assert torch.equal(explorer.masked, GRADIENT)
    assert bool(explorer.mask.all())
    assert "9 of 9 entries kept, each times 1.00" in explorer.picture.value


def test_the_button_draws_another_mask_each_time_and_the_same_ones_again():
    explorer, twin = mask_explorer(GRADIENT, reserve_p=0.5), mask_explorer(GRADIENT, reserve_p=0.5)
    masks = [explorer.mask]
    for seed in (1, 2, 3):
        explorer.seed_button.click()
        assert explorer.seed == seed
        masks.append(explorer.mask)
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 1
    for mask in masks:
        assert torch.equal(twin.mask, mask)
        twin.seed_button.click()


def test_the_picture_says_in_words_what_it_shows():
    explorer = mask_explorer(GRADIENT)
    label = svg_of(explorer).getAttribute("aria-label")
    caption = f"reserve_p 0.33, seed 0: {int(explorer.mask.sum())} of 9 entries kept, each times 3.03."
    assert caption in label
    assert explorer.status.value.startswith(f"<p>{caption}")
    assert "NaN" not in label


def test_every_control_has_a_description_and_the_container_its_class():
    explorer = mask_explorer(GRADIENT)
    assert explorer.slider.description == "reserve_p"
    assert explorer.seed_button.description == "New seed"
    assert "ftkit-mask-explorer" in explorer._dom_classes
    assert isinstance(explorer.picture, ipywidgets.HTML)


def test_two_explorers_show_the_same_bytes_and_leave_no_figure_open():
    open_before = pyplot.get_fignums()
    assert mask_explorer(GRADIENT).picture.value == mask_explorer(GRADIENT).picture.value
    assert pyplot.get_fignums() == open_before


def test_what_a_notebook_stores_of_it_is_short_and_stable():
    explorer = mask_explorer(GRADIENT)
    assert repr(explorer) == "MaskExplorer(reserve_p=0.33, seed=0): run the cell to move it"
    assert len(repr(explorer)) < 110  # ipywidgets cuts longer ones
    assert isinstance(explorer, MaskExplorer)


def test_the_range_of_the_slider_keeps_zero_out():
    explorer = mask_explorer(GRADIENT)
    assert (explorer.slider.min, explorer.slider.max) == (0.05, 1.0)
    for reserve_p in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"0\.05 to 1"):
            mask_explorer(GRADIENT, reserve_p=reserve_p)
    with pytest.raises(ValueError, match="matrix"):
        mask_explorer(GRADIENT.flatten())


def test_answers_follow_the_menu_and_are_escaped():
    explorer = answer_explorer(["one?", "two?"], {"before": ["x", "<b>"], "after": ["1", "2"]}, ["1", "2"])
    assert "✔ exact match" in explorer.picture.value and explorer.index == 0
    explorer.menu.value = 1
    assert "&lt;b&gt;" in explorer.picture.value and "<b>" not in explorer.picture.value
    assert explorer.picture.value.count("✘") == 1
    assert "2 questions" in repr(explorer) and explorer.menu.description == "question"
    with pytest.raises(ValueError, match="equally long"):
        answer_explorer(["one?"], {"before": []}, ["1"])
    with pytest.raises(ValueError, match="equally long"):
        answer_explorer([], {}, [])


@pytest.mark.parametrize(("rows", "ranks"), [(8, 2), (10, 4), (5, 4), (3, 8), (1, 1)])
def test_shards_are_cut_as_torch_cuts(rows, ranks):
    explorer = shard_explorer(rows, 3, ranks)
    chunks = [len(chunk) for chunk in torch.arange(rows).chunk(ranks)]
    assert explorer.rows_per_rank == chunks + [0] * (ranks - len(chunks))
    assert f"on {ranks} rank(s)" in explorer.picture.value
    before = explorer.picture.value
    explorer.slider.value = 8 if ranks != 8 else 2
    assert explorer.picture.value != before and svg_of(explorer).tagName == "svg"


def test_shard_explorer_refuses_what_it_cannot_draw():
    for wrong in ((0, 3, 2), (8, 3, 0), (8, 3, 9)):
        with pytest.raises(ValueError, match="1 to 8 ranks"):
            shard_explorer(*wrong)
