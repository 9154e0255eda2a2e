"""The words of a picture: titles, axes, ends of lines, lengths of bars and what is written in it."""

import matplotlib
import pytest
from matplotlib import pyplot

matplotlib.use("agg")

from ftcourse.alternative_text import LIMIT, WORDS, caption, describe
from ftcourse.plots import figure_svg, new_axes, plot_by_domain, plot_loss, plot_matrix


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    pyplot.close("all")


def test_lines_are_told_by_axes_and_ends():
    ax = plot_loss([{"step": 1, "loss": 3.0}, {"step": 40, "loss": 0.25}, {"step": 40, "eval_loss": 0.5}])
    ax.set_title("A run")
    said = describe(ax.figure)
    assert said.startswith("A run; optimizer step from ") and said.endswith(".")
    assert "loss (nats per token) from 0" in said and "training from 3 to 0.25, evaluation 0.5" in said


def test_bars_are_told_by_names_and_lengths():
    ax = new_axes()[1]
    ax.bar(["AdamW", "SGD"], [12, 8.5], label="MiB")
    assert describe(ax.figure) == "from left to right: AdamW, SGD; plotted: MiB 12 8.5."
    lying = new_axes()[1]
    lying.barh(["AdamW", "SGD"], [12, 8.5])
    assert "AdamW, SGD" in describe(lying.figure) and "bars 12 8.5" in describe(lying.figure)


@pytest.mark.parametrize("noise", [-3e-9, 2e-7])
def test_numbers_are_no_more_exact_than_what_is_drawn(noise):
    ax = new_axes()[1]
    ax.plot([1, 2, 3], [2.0, -1.0, noise], label="loss")
    ax.plot([noise, 3], [1, 1], "o", label="marks")
    assert "loss from 2 to 0 by way of \N{MINUS SIGN}1" in describe(ax.figure)
    ax.set_yscale("symlog")
    assert "to 0 " not in describe(ax.figure)
    tiny = new_axes()[1]
    tiny.plot([1, 2], [noise, 3 * noise])
    assert f"a line from {noise:.0e} to".replace("-", "\N{MINUS SIGN}") in describe(tiny.figure)


def test_panels_are_numbered_and_a_colour_bar_is_none():
    figure, axes = new_axes(9, 3, columns=2)
    plot_matrix([[1.0, 2.0]], title="before", ax=axes[0])
    plot_matrix([[3.0, 4.0]], title="after", ax=axes[1])
    bar = figure.colorbar(axes[1].collections[0], ax=axes[1])
    bar.set_label("size")
    said = describe(figure)
    assert said.startswith("2 panels. 1: before; ") and ". 2: after; " in said
    assert "1.00, 2.00" in said and said.endswith("the colours show size.")


def test_a_caption_comes_first_and_words_come_once():
    ax = plot_by_domain({"sums": 0.5}, {"sums": 0.75}, labels=("base", "tuned"), ylabel="exact match")
    assert caption(ax, "Tuning helps") is ax and caption(ax.figure, "Tuning helps") is ax.figure
    said = describe(ax.figure)
    assert said.startswith("Tuning helps. ") and said.count("sums") == 1 and "0.50 → 0.75" in said


def test_mathematics_is_read_as_words_and_logarithms_are_named():
    ax = new_axes()[1]
    ax.plot([1, 100], [1, 2])
    ax.set(xscale="log", xlabel=r"$r$ of LoRA")
    said = describe(ax.figure)
    assert "$" not in said and "r of LoRA from 10^" in said and "logarithmic" in said


def test_long_texts_are_cut_at_a_word():
    ax = new_axes()[1]
    for number in range(3 * WORDS):
        ax.text(0, number, f"a longer remark of several words, number {number}")
    said = describe(ax.figure)
    assert len(said) <= LIMIT + 2 and (said.endswith("…") or "more" in said)


def test_an_svg_is_named_by_it():
    ax = new_axes()[1]
    ax.plot([1, 2], [3, 4], label="rising")
    assert 'aria-label="plotted: rising from 3 to 4."' in figure_svg(ax.figure)
    assert describe(pyplot.figure()) == ""


def test_marks_beside_names_are_told_and_lines_across_are_not():
    ax = new_axes()[1]
    ax.errorbar(2.5, 0, xerr=1, fmt="o")
    ax.plot(-1, 1, "o")
    ax.axvline(0)
    ax.set(yticks=[0, 1], yticklabels=["full", "LoRA"], xlabel="percentage points")
    said = describe(ax.figure)
    assert said.endswith("; marks at full 2.5, LoRA \N{MINUS SIGN}1.") and "line" not in said


def test_a_turn_between_the_ends_is_told():
    ax = new_axes()[1]
    ax.plot([1, 2, 3], [0, 5, 1], label="rises and falls")
    ax.plot([1, 2, 3], [4, 1, 4], label="falls and rises")
    said = describe(ax.figure)
    assert "rises and falls from 0 to 1 over 5" in said and "falls and rises from 4 to 4 by way of 1" in said


def test_lengths_on_bars_are_said_once():
    ax = new_axes()[1]
    ax.bar_label(ax.bar(["a", "b"], [1, 2]))
    assert describe(ax.figure) == "from left to right: a, b; plotted: bars 1 2."
