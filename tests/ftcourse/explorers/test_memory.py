"""The bars and the control of notebook 12, on rows made up so that each answer is known."""

import re

import pytest

from ftcourse.explorers.memory import GIB, MemoryExplorer, first_change, fits, plot_collectives, plot_memory


def row(method="full", gpus=1, change="as planned", gib=100):
    peak = gib * GIB
    split = {"weights": peak // 2, "activations": peak - peak // 2}
    return {"model": "m", "method": method, "gpus": gpus, "change": change, "peak": peak, "at_peak": split}


ROWS = [
    row(gib=200),
    row(change="less", gib=150),
    row(gpus=8, gib=90),
    row(gpus=8, change="less", gib=70),
    row("lora", gib=30),
]


def test_first_change():
    assert first_change(ROWS, ROWS[0], 80 * GIB) == "8 GPUs, with less"
    assert first_change(ROWS, ROWS[0], 180 * GIB) == "less"
    assert first_change(ROWS, ROWS[0], 40 * GIB) == "lora"
    assert first_change(ROWS, ROWS[0], 10 * GIB) == ""  # nothing would do
    assert first_change(ROWS, ROWS[4], 80 * GIB) == ""  # it fits
    assert fits(ROWS[3], 80 * GIB) and not fits(ROWS[3], 77 * GIB)  # a tenth is left free


def test_control_says_what_it_draws():
    explorer = MemoryExplorer(ROWS)
    assert explorer.verdict == "does not fit; first change that would do: 8 GPUs, with less"
    assert explorer.verdict in explorer.picture.value and "<svg" in explorer.picture.value
    explorer.method.value = "lora"
    assert explorer.verdict == "fits" and explorer.chosen == ROWS[4]
    explorer.gib.value = 16
    assert explorer.verdict.endswith("none of these")
    assert "16 GiB" in repr(explorer) and len(repr(explorer)) < 200


@pytest.mark.parametrize("capacity", [None, 80 * GIB, {"one": 16 * GIB, "two": 80 * GIB}])
def test_bars_are_as_long_as_their_bytes(capacity):
    ax = plot_memory({"one": {"weights": GIB, "logits": 2 * GIB}, "two": {"weights": 4 * GIB}}, capacity=capacity)
    said = [text.get_text().strip() for text in ax.texts]
    each = isinstance(capacity, dict)
    assert (["3.0 of 16", "4.0 of 80"] if each else ["3.0", "4.0"]) == [s for s in said if "GiB" not in s]
    assert [s for s in said if "GiB" in s] == (["80 GiB"] if capacity and not each else [])
    assert ("dashed: what its GPU has" in ax.get_xlabel()) == each
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["weights", "logits"]
    assert re.search("GiB", ax.get_xlabel())
    longest = max(line.get_xdata()[0] for line in ax.lines) if capacity else 4
    assert ax.get_xlim()[1] >= longest  # the line of the capacity is inside


def test_scratch_is_called_by_its_usual_name():
    ax = plot_memory({"one": {"weights": GIB, "scratch": GIB}})
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["weights", "temporaries"]


def test_collectives_are_drawn_before_and_after():
    axes = plot_collectives(3)
    assert [ax.get_title() for ax in axes] == ["all-gather", "reduce-scatter", "all-reduce"]
    blocks = [len(ax.patches) for ax in axes]
    assert blocks == [3 + 9, 9 + 3, 9 + 9]
