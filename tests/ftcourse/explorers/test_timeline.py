"""The pictures of a step in time, and the control over its waiting."""

import pytest

from ftcourse.explorers.logits import PER_LOGIT, LogitsExplorer
from ftcourse.explorers.timeline import TimelineExplorer, plot_exposed, plot_timeline
from ftcourse.timeline import Plan, end_of, timeline

PLAN = Plan(layers=2, layer_parameters=100, root_parameters=100, tokens=1, ranks=2, flops=200, bandwidth=100)


def test_bars_are_where_their_events_are():
    events = [event for event in timeline(PLAN) if event.end > event.start]
    ax = plot_timeline({"a plan": timeline(PLAN)}, unit="s")
    drawn = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches)
    for bar, event in zip(drawn, sorted((event.start, event.end) for event in events), strict=True):
        assert bar == pytest.approx(event)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["a plan: compute", "a plan: network"]
    assert {text.get_text() for text in ax.texts} == {"0", "1", "R"}
    assert ax.lines[0].get_xdata()[0] == end_of(events)


def test_shares_are_drawn_in_per_cent():
    ax = plot_exposed({"fast": {2048: 0.5, 4096: 0.25}})
    assert list(ax.lines[0].get_ydata()) == [50, 25]


def test_the_control_says_what_waits():
    explorer = TimelineExplorer(400e12, models=("llama-3-8b",))
    first = explorer.waiting / explorer.seconds
    assert f"{first:.0%}" in explorer.caption and "<svg" in explorer.picture.value
    explorer.gpus.value, explorer.cards.value = 64, 1
    assert explorer.waiting / explorer.seconds > first and "1 cards per node" in explorer.state()
    few = explorer.waiting / explorer.seconds
    explorer.tokens.value = explorer.tokens.options[-1][1]
    assert explorer.waiting / explorer.seconds < few


def test_the_logits_of_a_batch():
    explorer = LogitsExplorer()
    assert explorer.bars["peak of the loss"] == PER_LOGIT * 8 * 2048 * 128_256
    explorer.batch.value = 1
    explorer.tokens.value = 512
    assert explorer.bars["the same, 512 tokens at once"] == explorer.bars["peak of the loss"]
    assert "1 × 512 tokens" in repr(explorer) and "<svg" in explorer.picture.value
