"""The picture shows what it was given: boxes as wide as their parameters, filled where they train."""

import matplotlib
import pytest
from matplotlib import pyplot

from tests.tiny import foreign_model

matplotlib.use("agg")

from ftcourse.explorers.freezing import (
    NARROWEST,
    Part,
    PresetExplorer,
    parts_of,
    plot_anatomy,
    plot_shares,
    shares_of,
)
from ftcourse.plots import figure_svg
from ftkit.freezing import add_layers, bitfit, freeze, train_only
from ftkit.memory import published_meta_model
from ftkit.models import load_base
from ftkit.parameters import count_parameters


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    pyplot.close("all")


def widths(ax):
    """Of each box in turn what is filled and what is hatched; the third patch of a box is its frame."""
    return [patch.get_width() for number, patch in enumerate(ax.patches) if number % 3 < 2]


def test_parts_cover_every_parameter_once():
    for model in (load_base()[0], foreign_model(), published_meta_model("llama-3-8b")):
        parts = parts_of(model)
        assert sum(part.parameters for part in parts) == count_parameters(model).total
        assert len({(part.row, part.label, part.kind) for part in parts}) == len(parts)


def test_the_parts_of_pocket_base_by_hand():
    """Width 128, MLP 320, 4 blocks, 1,024 tokens, biases on all seven matrices."""
    parts = {(part.row, part.label): part for part in parts_of(load_base()[0])}
    assert parts["embedding", "embed_tokens"].parameters == parts["LM head", "lm_head"].parameters == 1024 * 128
    assert parts["block 3", "q"].parameters == 128 * 128 and parts["block 0", "down"].parameters == 320 * 128
    assert parts["block 1", "biases"].parameters == 5 * 128 + 2 * 320
    assert parts["block 1", "norms"].parameters == 2 * 128 and parts["final norm", "norms"].parameters == 128
    assert {part.kind for place, part in parts.items() if place[1] in "qkvo"} == {"attention"}
    assert list(parts)[:4] == [("embedding", "embed_tokens"), ("block 0", "q"), ("block 0", "k"), ("block 0", "v")]


def test_what_trains_is_counted_by_part():
    model = load_base()[0]
    bitfit(model)
    for part in parts_of(model):
        assert part.trainable == (part.parameters if part.kind == "biases" else 0)
    add_layers(model)
    assert {part.row for part in parts_of(model) if part.trainable} == {"added layers"}


def test_a_box_is_as_wide_as_its_parameters_and_filled_by_its_trainable_share():
    parts = [Part("block 0", "q", "attention", 300, 100), Part("block 0", "up", "MLP", 700, 700)]
    ax = plot_anatomy(parts, title="x")
    assert widths(ax) == pytest.approx([0.1, 0.2, 0.7, 0.0])
    assert [text.get_text() for text in ax.texts][:2] == ["q\n300", "up\n700"]


def test_a_part_too_small_to_see_is_widened_and_labelled_outside():
    parts = [Part("block 0", "up", "MLP", 10_000, 0), Part("block 0", "norms", "norms", 1, 1)]
    ax = plot_anatomy(parts, title="x")
    assert widths(ax) == pytest.approx([0, 10_000 / 10_001, NARROWEST, 0])
    assert ax.texts[-1].get_text() == "norms 1" and ax.texts[-1].get_position()[0] > 1


def test_shares_add_up_and_are_drawn_side_by_side():
    parts = parts_of(load_base()[0])
    shares = shares_of(parts)
    assert sum(shares.values()) == pytest.approx(1) and "added layers" not in shares
    assert shares["embedding"] == pytest.approx(131_072 / 1_022_080)
    ax = plot_shares({"one": parts, "two": parts}, title="x")
    assert len(ax.patches) == 2 * len(shares)
    ends = [patch.get_x() + patch.get_width() for patch in ax.patches]
    assert ends[len(shares) - 1] == ends[-1] == pytest.approx(1)


def test_a_tied_head_is_part_of_the_embedding():
    model = foreign_model()
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert ("LM head" in {part.row for part in parts_of(model)}) != tied


def test_the_same_parts_give_the_same_bytes_and_few_of_them():
    parts = parts_of(load_base()[0])
    first, second = (figure_svg(plot_anatomy(parts, title="x").figure) for _ in range(2))
    assert first == second and len(first) < 100_000


def test_the_menu_redraws_and_counts():
    model, pictures = foreign_model(), {}
    for pattern in ("mlp", "q_proj"):
        train_only(model, pattern)
        pictures[pattern] = parts_of(model)
    explorer = PresetExplorer(pictures)
    before = explorer.picture.value
    explorer.menu.value = "q_proj"
    assert explorer.trainable == count_parameters(model).trainable == 3 * 32 * 64
    assert "q_proj: 6,144 of 42,592 parameters train" in explorer.picture.value != before
    assert repr(explorer) == "PresetExplorer('q_proj'): run the cell to choose another"
    assert "image/svg+xml" in explorer._repr_mimebundle_()


def test_a_frozen_model_has_no_filled_box():
    model = foreign_model()
    freeze(model, ".*")
    drawn = widths(plot_anatomy(parts_of(model), title="none"))
    assert set(drawn[::2]) == {0} and min(drawn[1::2]) > 0
