"""Shapes against what torch cuts, and a slider whose picture follows."""

import matplotlib
import pytest
import torch
from matplotlib import pyplot

from tests.tiny import foreign_model

matplotlib.use("agg")

from ftcourse.explorers.tensor_parallel import layer_matrices, layer_shards, plot_layer_shards, shard_shape
from ftcourse.plots import figure_svg


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    pyplot.close("all")


@pytest.mark.parametrize("tp", [1, 2])
def test_shapes_are_those_of_the_models_matrices_cut_along_a_dimension(tp):
    model = foreign_model()
    matrices = layer_matrices(model.config)
    cut_along = {"colwise": 0, "rowwise": 1}
    for name, (kind, out, wide) in matrices.items():
        (found,) = {n for n, _ in model.named_modules() if n.startswith("model.layers.0.") and n.endswith(name)}
        weight = model.get_submodule(found).weight
        assert weight.shape == (out, wide)
        style = model.tp_plan[found.replace(".0.", ".*.")]
        assert shard_shape(kind, out, wide, tp) == torch.chunk(weight, tp, cut_along[style])[0].shape


def test_the_picture_has_a_part_for_each_rank_and_matrix():
    matrices = layer_matrices(foreign_model().config)
    ax = plot_layer_shards(matrices, 2)
    assert len(ax.patches) == 14
    areas = [p.get_width() * p.get_height() for p in ax.patches]
    assert sum(areas) == sum(out * wide for _, out, wide in matrices.values())
    first, second = (figure_svg(plot_layer_shards(matrices, 2).figure) for _ in range(2))
    assert first == second


def test_the_slider_redraws_and_says_why_a_degree_is_impossible():
    explorer = layer_shards(foreign_model().config)
    before = explorer.picture.value
    assert explorer.shapes["k_proj"] == (16, 32) and "<svg" in before
    explorer.slider.value = 3
    assert explorer.shapes == {} and "does not divide 4 (attention heads)" in explorer.caption
    assert explorer.picture.value == ""
    explorer.slider.value = 1
    assert explorer.shapes["o_proj"] == (32, 64) and explorer.picture.value != before
    assert repr(explorer) == "LayerShards(tp=1): run the cell to move it"
