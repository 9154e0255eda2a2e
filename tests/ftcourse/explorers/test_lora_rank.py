"""Energy against a reconstruction, and a slider whose picture follows."""

import matplotlib
import pytest
import torch
from matplotlib import pyplot

from tests.tiny import foreign_model

matplotlib.use("agg")

from ftcourse.explorers.lora_rank import (
    RankExplorer,
    explained_variance,
    plot_singular_values,
    plot_starts,
    random_like,
)
from ftcourse.plots import figure_svg

LOSSES = {1: 2.0, 2: 1.5, 8: 1.1, 16: 1.0}


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    pyplot.close("all")


def low_rank(r, out=12, inside=9):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(out, r, generator=generator) @ torch.randn(r, inside, generator=generator)


@pytest.mark.parametrize("r", [1, 3, 9])
def test_energy_is_what_the_nearest_matrix_of_that_rank_leaves_of_the_squares(r):
    change = torch.randn(12, 9, generator=torch.Generator().manual_seed(2)).double()
    U, S, V = torch.linalg.svd(change, full_matrices=False)
    error = (change - U[:, :r] @ torch.diag(S[:r]) @ V[:r]).square().sum() / change.square().sum()
    assert explained_variance(S, r) == pytest.approx(1 - error.item(), abs=1e-12)  # float64, of about 100 numbers
    assert explained_variance(S, 1) != pytest.approx((S[0] / S.sum()).item(), abs=1e-3)  # without the squares


def test_a_matrix_of_rank_3_is_whole_at_3_and_a_random_one_is_not():
    change = low_rank(3)
    assert explained_variance(torch.linalg.svdvals(change), 3) > 0.9999  # float32
    assert explained_variance(torch.linalg.svdvals(change), 2) < 0.99
    noise = random_like(change)
    assert noise.square().sum() == pytest.approx(change.square().sum().item(), rel=1e-4)
    assert explained_variance(noise, 3) < 0.8


def test_the_picture_has_the_kept_and_the_cut_ones_and_rings_the_rank():
    change = low_rank(3)
    left, right = plot_singular_values(change, LOSSES, 2, name="q_proj")
    kept, cut, noise = (len(line.get_xdata()) for line in left.lines)
    assert (kept, cut, noise) == (2, 7, 9) and left.get_title() == "q_proj"
    assert right.lines[1].get_xydata().tolist() == [[2, 1.5]]
    first, second = (figure_svg(plot_singular_values(change, LOSSES, 2, name="x")[0].figure) for _ in range(2))
    assert first == second


def test_starts_share_an_axis_and_say_what_lies_at_its_edge():
    one = {64: {1e-3: 0.9, 1e-2: 0.002, 1.0: 5e7}}
    other = {64: {1e-3: 0.9, 1e-2: 0.5, 1.0: float("nan")}}
    left, right = plot_starts({"one": one, "other": other})
    assert left.get_ylim() == right.get_ylim() and left.get_ylim()[0] < 0.002
    assert [ax.lines[0].get_ydata()[-1] for ax in (left, right)] == [10, 10]
    assert "10 and above" in left.get_ylabel()


def test_the_controls_redraw():
    model = foreign_model()
    changes = {
        name: p.detach()  # bfloat16
        for name, p in model.named_parameters()
        if p.ndim == 2 and "self_attn" in name
    }
    explorer = RankExplorer(changes, LOSSES)
    first, explained = explorer.picture.value, explorer.explained
    explorer.slider.value = 16
    assert explorer.picture.value != first and explorer.explained > explained
    assert "loss 1.00 nats" in explorer.picture.value
    explorer.menu.value = name = list(changes)[-1]
    assert f"{name} at rank 16" in explorer.picture.value
    assert repr(explorer) == f"RankExplorer(r=16, {name!r}): run the cell to move it"
