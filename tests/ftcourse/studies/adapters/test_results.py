"""Means and pairs of judged runs, worked out by hand."""

import pytest

from ftcourse.studies.adapters import table

from .test_table import CAPITALS, SUMS, record

RUNS = [
    record("lora", 1e-2, 100, 1.0, 0.4), record("lora", 1e-2, 0, 2.0, 0.2), record("lora", 1e-2, 1, 4.0, 0.4, SUMS),
    record("dora", 3e-3, 100, 1.0, 0.4), record("dora", 3e-3, 1, 1.0, 0.6), record("dora", 3e-3, 0, 1.0, 0.8),
    record("dora", 1e-2, 0, 5.0, 0.1), record("dora", 1e-2, 100, 5.0, 0.1), record("full", 1e-3, 100, 1.0, 0.4),
    record("full", 1e-3, 0, 1.0, 0.4), record("full", 1e-3, 2, 1.0, 0.4), record("dora", 1e-2, 7, 5.0, 0.1),
]  # fmt: skip


def test_pairs_are_of_equal_seeds():
    assert table.ratios(RUNS, "chat-200", "lora", "dora", "test_loss") == [2.0, 4.0]
    assert [(a["seed"], b["seed"]) for a, b in table.pairs(RUNS, "chat-200", "dora", "lora")] == [
        (0, 0),
        (1, 1),
    ]
    with pytest.raises(ValueError, match="'lora' and 'full' were not run with the same seeds"):
        table.pairs(RUNS, "chat-200", "lora", "full")


def test_means():
    lora = [run for run in RUNS if run["row"] == "lora" and run["seed"] < 100]
    assert table.mean(lora, "test_exact") == pytest.approx(0.3)
    assert [table.known(run) for run in lora] == [sum(CAPITALS.values()) / 2, sum(SUMS.values()) / 2]


def test_the_runs_at_another_row_s_rate_are_of_the_judged_seeds():
    kept = table.at_rate_of(RUNS, "chat-200", "dora", "lora")
    assert [(run["lr"], run["seed"]) for run in kept] == [(1e-2, 0)]
