"""The map of the child: parts by name, shares against a plain count, and the slider."""

import re

import pytest
import torch

import ftkit
from ftcourse.explorers.fisher_masks import (
    Part,
    child_explorer,
    child_parts,
    overlap,
    part_of,
    plot_child_map,
    plot_overlaps,
    plot_patterns,
)
from ftcourse.plots import figure_svg
from ftkit.child_tuning import top_fraction_masks
from tests.tiny import foreign_model


def scores_of(model):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(p.shape, generator=generator) for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.layers.12.self_attn.q_proj.weight", "layers.12 self_attn"),
        ("model.layers.0.self_attn.q_norm.weight", "layers.0 self_attn"),
        ("model.layers.0.post_attention_layernorm.weight", "layers.0 norms"),
        ("model.layers.3.mlp.experts.7.up_proj.weight", "layers.3 mlp"),
        ("transformer.h.1.ln_2.bias", "h.1 norms"),
        ("layers.0.mlp.weight", "layers.0 mlp"),
        ("model.embed_tokens.weight", "embed_tokens"),
        ("model.norm.weight", "norm"),
        ("lm_head.weight", "lm_head"),
        ("0.weight", "0"),
        ("weight", "weight"),
    ],
)
def test_a_parameter_belongs_to_a_part(name, part):
    assert part_of(name) == part


def test_parts_hold_the_whole_model_in_its_order_and_the_whole_child():
    """On a model that is nothing like pocket-base: tied head, grouped queries, norms inside attention."""
    model = foreign_model()
    masks = top_fraction_masks(scores_of(model), 0.2)
    parts = child_parts(masks)
    layer = ["self_attn", "mlp", "norms"]
    assert list(parts) == [
        "embed_tokens",
        *(f"layers.{n} {module}" for n in range(3) for module in layer),
        "norm",
    ]
    assert sum(part.total for part in parts.values()) == sum(p.numel() for p in model.parameters())
    attention = [mask for name, mask in masks.items() if re.search(r"layers\.1\.self_attn", name)]
    kept, total = sum(int(mask.sum()) for mask in attention), sum(mask.numel() for mask in attention)
    assert parts["layers.1 self_attn"] == Part(kept, total)
    assert parts["layers.1 self_attn"].share == kept / total


def test_a_child_moved_to_another_layer_is_noticed():
    masks = {f"model.layers.{n}.mlp.weight": torch.full((4, 5), n == 0) for n in range(2)}
    moved = {f"model.layers.{n}.mlp.weight": torch.full((4, 5), n == 1) for n in range(2)}
    assert child_parts(masks) != child_parts(moved)


def test_no_masks_are_refused():
    with pytest.raises(ValueError, match="no masks to count"):
        child_parts({})


def test_the_plot_draws_each_part_in_whole_per_cent():
    parts = {"embed": Part(124, 1000), "layers.0 mlp": Part(126, 1000), "head": Part(0, 7)}
    ax = plot_child_map(parts, 0.1, title="child")
    assert [bar.get_width() for bar in ax.patches] == [12, 13, 0]
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "embed (1,000)",
        "layers.0 mlp (1,000)",
        "head (7)",
    ]
    assert [text.get_text() for text in ax.texts] == ["12 %", "13 %", "0 %", "by chance"]
    assert ax.lines[0].get_xdata()[0] == 10
    first = figure_svg(ax.figure)
    parts["embed"] = Part(123, 1000)  # the next digit does not show
    assert figure_svg(plot_child_map(parts, 0.1, title="child").figure) == first
    parts["embed"] = Part(140, 1000)
    assert figure_svg(plot_child_map(parts, 0.1, title="child").figure) != first


def test_the_slider_chooses_the_child():
    explorer = child_explorer(scores_of(foreign_model()), 0.1)
    total = sum(part.total for part in explorer.parts.values())
    assert sum(part.kept for part in explorer.parts.values()) == round(0.1 * total)
    before, picture = explorer.parts, explorer.picture.value
    explorer.slider.value = 0.5
    assert explorer.picture.value != picture
    # Raising reserve_p only adds weights, part by part.
    assert all(explorer.parts[name].kept >= part.kept for name, part in before.items())
    assert sum(part.kept for part in explorer.parts.values()) == round(0.5 * total)
    assert "reserve_p 0.50" in explorer.picture.value and "reserve_p 0.50" in explorer.status.value
    assert repr(explorer) == "ChildExplorer(reserve_p=0.50): run the cell to move it"


@pytest.mark.parametrize("reserve_p", [0.0, 0.95])
def test_a_share_beyond_the_slider_is_refused(reserve_p):
    with pytest.raises(ValueError, match=r"from 0\.01 to 0\.9, and is"):
        child_explorer({"w": torch.rand(9)}, reserve_p)


def test_pocket_base_has_fifteen_parts():
    model, _ = ftkit.load_base()
    parts = child_parts({name: torch.ones(p.shape, dtype=torch.bool) for name, p in model.named_parameters()})
    assert len(parts) == 15
    assert {part.share for part in parts.values()} == {1.0}


def test_overlaps_are_counted_and_drawn():
    first = {"a": torch.tensor([True, True, False, False]), "b": torch.tensor([True, False])}
    second = {"a": torch.tensor([False, True, True, True]), "b": torch.tensor([True, False])}
    assert overlap(first, second) == 2 / 3 and overlap(second, first) == 2 / 4
    ax = plot_overlaps({"first": first, "second": second})
    assert [text.get_text() for text in ax.texts] == ["100 %", "67 %", "50 %", "100 %"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"]


def test_patterns_show_each_mask_with_its_share():
    masks = {"all": torch.ones(6, 4, dtype=torch.bool), "half": torch.arange(24).view(6, 4) % 2 == 0}
    axes = plot_patterns(masks)
    assert [ax.get_title() for ax in axes] == ["all: 100%", "half: 50%"]
    assert axes[1].images[0].get_array().tolist() == masks["half"].int().tolist()
