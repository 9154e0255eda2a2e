"""The map shows what it was given: filled where entries train, hatched where they do not."""

import matplotlib
import pytest
import torch
from matplotlib import pyplot

from tests.tiny import foreign_model

matplotlib.use("agg")

from ftcourse.explorers.freezing import TILE, PresetExplorer, plot_map, requires_grad_map
from ftcourse.plots import figure_svg
from ftkit.freezing import add_layers, freeze, train_only
from ftkit.models import load_base
from ftkit.parameters import count_parameters


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    pyplot.close("all")


def parts(ax):
    """Boxes that are hatched, filled and framed; a path of a closed box has five points."""
    boxes = {"hatched": 0, "filled": 0, "framed": 0}
    for patch in ax.patches:
        kind = "hatched" if patch.get_hatch() else "filled" if patch.get_fill() else "framed"
        boxes[kind] += len(patch.get_path().vertices) // 5
    return boxes


def area(ax):
    """Of what is filled, in units of one matrix's square."""
    total = 0.0
    for patch in ax.patches:
        if patch.get_fill() and not patch.get_hatch():
            for box in patch.get_path().vertices[: len(patch.get_path().vertices) // 5 * 5].reshape(-1, 5, 2):
                total += abs((box[1, 0] - box[0, 0]) * (box[2, 1] - box[1, 1]))
    return total / (0.76 * 0.6)


def test_a_tile_is_filled_where_its_entries_train():
    corner = torch.zeros(9, 9, dtype=torch.bool)
    corner[0, 0] = corner[0, 1] = corner[3, 5] = True
    corner[8, 8] = True  # outside the corner that is drawn
    ax = plot_map({"model.layers.0.mlp.up_proj.weight": corner}, title="one matrix")
    assert parts(ax) == {"hatched": 1, "filled": 2, "framed": 1}  # two neighbours are one box
    assert area(ax) == pytest.approx(3 / TILE**2)


def test_a_frozen_model_has_no_filled_part_and_a_whole_one_no_gap():
    model = foreign_model()
    tensors = len(list(model.parameters()))
    matrices = sum(p.ndim == 2 for p in model.parameters())
    vectors = (tensors - matrices) * 0.16 / 0.6
    assert area(plot_map(requires_grad_map(model), title="all")) == pytest.approx(matrices + vectors)
    freeze(model, ".*")
    assert parts(plot_map(requires_grad_map(model), title="none")) == {
        "hatched": tensors,
        "filled": 0,
        "framed": tensors,
    }


def test_rows_are_blocks_and_columns_are_modules():
    model = load_base()[0]
    add_layers(model)
    ax = plot_map(requires_grad_map(model), title="x")
    rows = [label.get_text() for label in ax.get_yticklabels()]
    assert rows == [
        "embed_tokens", "block 0", "block 1", "block 2", "block 3", "norm", "lm_head", "added.0", "added.2"
    ]  # fmt: skip
    columns = [label.get_text() for label in ax.get_xticklabels()]
    assert columns[:3] == ["other", "q_proj", "k_proj"] and columns[-1] == "post_attention_norm"


def test_modules_of_one_name_have_columns_of_their_own():
    names = [f"h.{i}.{path}.weight" for i in range(2) for path in ("attn.c_attn", "attn.c_proj", "mlp.c_proj")]
    trains = {f"transformer.{name}": torch.zeros(9, 9, dtype=torch.bool) for name in names}
    ax = plot_map(trains, title="GPT-2")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["c_attn", "attn.c_proj", "mlp.c_proj"]


def test_the_same_map_gives_the_same_bytes_and_few_of_them():
    trains = requires_grad_map(load_base()[0])
    first, second = (figure_svg(plot_map(trains, title="x").figure) for _ in range(2))
    assert first == second and len(first) < 100_000


def test_the_menu_redraws_and_counts():
    model, maps = foreign_model(), {}
    for pattern in ("mlp", "q_proj"):
        train_only(model, pattern)
        maps[pattern] = requires_grad_map(model)
    explorer = PresetExplorer(maps)
    before = explorer.picture.value
    explorer.menu.value = "q_proj"
    assert explorer.trainable == count_parameters(model).trainable == 3 * 32 * 64
    assert "q_proj: 6,144 of 42,592 parameters train" in explorer.picture.value != before
    assert repr(explorer) == "PresetExplorer('q_proj'): run the cell to choose another"
