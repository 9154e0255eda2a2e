"""The pictures show what they were given, in bytes that do not change, and never by colour alone."""

import subprocess
import sys
import xml.dom.minidom

import matplotlib
import nbformat
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.collections import QuadMesh
from nbclient import NotebookClient

from tests import warm

matplotlib.use("agg")

from ftcourse.plots import (
    HATCHES,
    OKABE_ITO,
    figure_svg,
    new_axes,
    plot_by_domain,
    plot_loss,
    plot_matrix,
    plot_shards,
)

GRADIENT = [[0.5, -1.0, 0.25], [2.0, 0.0, -0.75]]
MASK = [[True, False, True], [False, True, True]]
METRICS = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 2.5}, {"lr": 0.1}]
BEFORE, AFTER = {"planets": 0.9, "sums": 0.5, "days": 1.0}, {"planets": 0.2, "sums": 0.8, "days": 1.0}


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    pyplot.close("all")


def draw_all():
    return [
        plot_matrix(GRADIENT, title="gradient", mask=MASK),
        plot_loss(METRICS),
        plot_by_domain(BEFORE, AFTER, labels=("base", "tuned"), ylabel="exact match (share)"),
        plot_shards([3, 3, 2, 0], columns=128, title="embed_tokens.weight"),
    ]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_import_needs_neither_matplotlib_nor_torch():
    code = "import sys, ftcourse.plots; sys.exit(bool({'matplotlib', 'torch', 'IPython'} & set(sys.modules)))"
    assert subprocess.run([warm.COLD, "-c", code]).returncode == 0


@pytest.mark.parametrize("number", range(4))
def test_two_renderings_give_the_same_bytes_without_date_or_version(number):
    first, second = (figure_svg(draw_all()[number].figure) for _ in range(2))
    assert first == second
    assert "<dc:date>" not in first
    assert matplotlib.__version__ not in first
    xml.dom.minidom.parseString(first)


def test_another_process_gives_the_same_bytes():
    code = (
        "import matplotlib; matplotlib.use('agg'); from ftcourse.plots import *; "
        f"print(figure_svg(plot_matrix({GRADIENT}, title='gradient', mask={MASK}).figure), end='')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == figure_svg(draw_all()[0].figure)


def test_the_process_s_own_style_changes_nothing():
    plain = [figure_svg(ax.figure) for ax in draw_all()]
    with matplotlib.rc_context({"axes.titlesize": 20, "hatch.linewidth": 3, "font.size": 13}):
        assert [figure_svg(ax.figure) for ax in draw_all()] == plain


def test_other_data_give_other_bytes():
    assert figure_svg(plot_matrix(GRADIENT, title="a").figure) != figure_svg(
        plot_matrix([[0.5, -1.0, 0.25], [2.0, 0.0, -0.76]], title="a").figure
    )


def test_figure_svg_names_the_picture_for_screen_readers_and_closes_it():
    figure = plot_matrix(GRADIENT, title="g").figure
    svg = figure_svg(figure, title='3 of 9 "kept" & <amplified>')
    root = xml.dom.minidom.parseString(svg).documentElement
    assert (root.tagName, root.getAttribute("role")) == ("svg", "img")
    assert root.getAttribute("aria-label") == '3 of 9 "kept" & <amplified>'
    assert not pyplot.fignum_exists(figure.number)


def test_matrix_draws_every_number_and_hatches_what_the_mask_drops():
    ax = plot_matrix(GRADIENT, title="child gradient", mask=MASK)
    (mesh,) = [c for c in ax.collections if isinstance(c, QuadMesh)]
    np.testing.assert_array_equal(mesh.get_array(), GRADIENT)
    assert texts(ax) == ["0.50", "0.25", "0.00", "-0.75"]  # the kept ones, row by row
    dropped = {patch.get_xy() for patch in ax.patches if patch.get_hatch()}
    assert dropped == {(1, 0), (0, 1)}  # (column, row)
    assert ax.get_title() == "child gradient"
    assert ax.get_ylim() == (2, 0)  # the first row is on top


def test_matrix_writes_a_mask_as_ones_and_zeros():
    ax = plot_matrix(torch.tensor(MASK), title="mask")
    assert texts(ax) == ["1", "0", "1", "0", "1", "1"]
    assert not ax.patches


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_matrix_takes_any_floating_tensor_even_one_with_a_gradient(dtype):
    ax = plot_matrix(torch.tensor(GRADIENT, dtype=dtype, requires_grad=True), title="g")
    np.testing.assert_array_equal(ax.collections[0].get_array(), GRADIENT)


def test_matrices_share_colours_when_given_a_limit():
    one, ten = (plot_matrix([[value]], title="g", limit=10).collections[0] for value in (1.0, 10.0))
    assert one.get_clim() == ten.get_clim() == (-10, 10)
    assert plot_matrix([[float("inf"), 2.0]], title="g").collections[0].get_clim() == (-2, 2)
    assert plot_matrix([[0.0]], title="g").collections[0].get_clim() == (-1, 1)


@pytest.mark.parametrize("values", [[[-2.0, 2.0], [0.0, 1.0]], [[True, False], [False, True]]])
def test_numbers_stand_out_from_their_cells(values):
    ax = plot_matrix(values, title="g")
    for text, cell in zip(ax.texts, ax.collections[0].to_rgba(np.ravel(values).astype(float)), strict=True):
        lights = sorted(luminance(rgb) for rgb in (cell, matplotlib.colors.to_rgba(text.get_color())))
        assert (lights[1] + 0.05) / (lights[0] + 0.05) > 3  # the least that WCAG allows for graphics


def luminance(rgba):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3]]
    return np.dot(linear, (0.2126, 0.7152, 0.0722))


def test_matrix_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="two dimensions, and this has 1"):
        plot_matrix([1.0, 2.0], title="g")
    with pytest.raises(ValueError, match="must agree"):
        plot_matrix(GRADIENT, title="g", mask=[[True]])


def test_loss_draws_both_curves_apart_by_line_and_marker():
    ax = plot_loss(METRICS)
    training, evaluation = ax.lines
    np.testing.assert_array_equal(training.get_xydata(), [[1, 3], [2, 2]])
    np.testing.assert_array_equal(evaluation.get_xydata(), [[2, 2.5]])
    assert training.get_linestyle() != evaluation.get_linestyle()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["training", "evaluation"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("optimizer step", "loss (nats per token)")


def test_loss_without_evaluation_has_one_curve_and_without_any_loss_is_refused():
    assert len(plot_loss(METRICS[:2]).lines) == 1
    with pytest.raises(ValueError, match="was anything logged"):
        plot_loss([{"lr": 0.1}])


def test_by_domain_sorts_by_change_with_the_greatest_fall_on_top():
    ax = draw_all()[2]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["planets", "days", "sums"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # row 0 is on top
    old, new = ax.lines
    np.testing.assert_array_equal(old.get_xydata(), [[0.9, 0], [1.0, 1], [0.5, 2]])
    np.testing.assert_array_equal(new.get_xydata(), [[0.2, 0], [1.0, 1], [0.8, 2]])
    assert old.get_marker() != new.get_marker()
    assert texts(ax) == ["0.90 → 0.20", "1.00 → 1.00", "0.50 → 0.80"]
    with pytest.raises(ValueError, match="planets"):
        plot_by_domain({"sums": 1}, {"sums": 1, "planets": 1}, labels=("a", "b"), ylabel="x")


def test_shards_cover_the_matrix_and_differ_by_hatch_and_text():
    ax = draw_all()[3]
    assert [(p.get_y(), p.get_height()) for p in ax.patches] == [(0, 3), (3, 3), (6, 2)]
    assert texts(ax) == [
        "rank 0: rows 0 to 2 (3 × 128)",
        "rank 1: rows 3 to 5 (3 × 128)",
        "rank 2: rows 6 to 7 (2 × 128)",
    ]
    assert len({p.get_hatch() for p in ax.patches}) == 3
    assert ax.get_xlabel() == "no rows: rank 3"
    assert len(set(HATCHES)) == len(set(OKABE_ITO)) == len(HATCHES) == len(OKABE_ITO)


@pytest.mark.parametrize("number", range(4))
def test_nothing_is_cut_off_or_overlaps_its_neighbour(number):
    figure = draw_all()[number].figure
    figure.canvas.draw()
    (ax,) = figure.axes
    box = ax.get_tightbbox()
    assert box.x0 >= 0 and box.y0 >= 0
    assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
    labels = [text.get_window_extent() for text in [*ax.texts, *ax.get_yticklabels()]]
    assert not any(a.overlaps(b) for i, a in enumerate(labels) for b in labels[:i])


def test_axes_that_are_given_are_drawn_on():
    figure, axes = new_axes(9, 3, columns=3)
    assert plot_matrix(GRADIENT, title="g", ax=axes[1]) is axes[1]
    assert plot_loss(METRICS, ax=axes[2]) is axes[2]
    assert figure.axes == list(axes)


def run_cells(*sources):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(nb, timeout=120, kernel_name="python3").execute()
    return [[out for out in cell.outputs if out.output_type == "display_data"] for cell in nb.cells]


@pytest.mark.parametrize(
    "early", ["", "import matplotlib.pyplot as plt", "%matplotlib inline\nimport matplotlib.pyplot as plt"]
)
def test_a_notebook_shows_stable_svg_whenever_pyplot_was_loaded(early):
    plot = f"plot_matrix({GRADIENT}, title='g', mask={MASK});"
    set_up = "from ftcourse.plots import plot_matrix, use_course_style\nuse_course_style()"
    shown = run_cells(early, set_up, plot, "import matplotlib.pyplot as plt\n" + plot)
    for outputs in shown[2:]:
        (output,) = outputs
        assert set(output.data) == {"text/html", "text/plain"}
        said = output.data["text/plain"]
        assert said.startswith("g; cells by colour; words in it: 0.50, 0.25, 0.00, -0.75")
        assert output.data["text/html"].startswith(f'<img alt="{said}" ')
    assert shown[2][0].data == shown[3][0].data
    assert not shown[0] and not shown[1]  # setting up shows nothing
