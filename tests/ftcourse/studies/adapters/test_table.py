"""The table is what the records say: against figures worked out by hand."""

import pytest

from ftcourse.studies.adapters import table
from ftcourse.studies.adapters.methods import BASE

CAPITALS, SUMS = {"capital": 1.0, "sum": 0.5}, {"capital": 0.5, "sum": 0.5}


def record(row, lr, seed, loss, exact, known=CAPITALS, ms=100.0, task="chat-200", model="", **others):
    judged = {
        "test_loss": loss,
        "test_exact": exact,
        "test_stop": 1.0,
        "test_calls": None,
        "pages_right": known,
    }
    return {
        "model": model, "task": task, "row": row, "lr": lr, "seed": seed, "step_ms": ms, "trainable": 10,
        "adapter_bytes": 1234567, **({} if loss is None else judged), **others,
    }  # fmt: skip


RUNS = [
    *[record(BASE, 0.0, seed, 4.0, 0.0, ms=None, trainable=0, adapter_bytes=0) for seed in (0, 1)],
    record("lora", 1e-2, 100, 1.0, 0.30), record("lora", 3e-3, 100, 1.1, 0.40), record("lora", 1e-3, 100, 2.0, 0.1),
    record("lora", 3e-3, 1, 1.4, 0.30, SUMS, ms=50.0), record("lora", 3e-3, 0, 1.2, 0.50),
    record("lora", 1e-2, 0, 9.9, 0.99),  # not at the best rate
    record("dora", 1e-2, 100, 1.0, 0.4), record("dora", 3e-3, 100, 0.9, 0.4), record("dora", 3e-2, 100, None, None),
    record("dora", 3e-3, 0, 1.0, 0.6, ms=200.0), record("dora", 3e-3, 1, None, None, ms=150.0),
    record("lora", 3e-3, 0, 7.0, 0.7, task="calls-200"), record("lora", 3e-3, 0, 7.0, 0.7, model="other"),
]  # fmt: skip


def test_the_best_rate_has_most_exact_answers_then_least_loss_and_never_diverged():
    mine = table.of_task(RUNS, "chat-200")
    assert table.best_rate(mine, "lora") == 3e-3
    assert table.best_rate(mine, "dora") == 3e-3
    diverged = [record("full", 1.0, 100, None, None), record("full", 0.3, 100, 99.0, 0.0)]
    assert table.best_rate(diverged, "full") == 0.3
    with pytest.raises(ValueError, match="no run of 'prefix' with seed 100"):
        table.best_rate(mine, "prefix")


def test_judged_are_other_seeds_at_the_best_rate_of_this_task_and_model():
    assert [(r["seed"], r["lr"], r["test_loss"]) for r in table.final_runs(RUNS, "chat-200", "lora")] == [
        (0, 3e-3, 1.2),
        (1, 3e-3, 1.4),
    ]
    assert [r["seed"] for r in table.final_runs(RUNS, "chat-200", BASE)] == [0, 1]


def test_a_line_by_hand():
    base, lora, dora = table.summarise(RUNS, "chat-200")
    assert [line["row"] for line in (base, lora, dora)] == [BASE, "lora", "dora"]
    assert lora["test_loss"] == {"mean": 1.3, "low": 1.2, "high": 1.4}
    assert lora["forgotten_by_domain"] == {
        "capital": 0.25,
        "sum": 0.0,
    }  # half of the capitals, on one seed of two
    assert lora["forgotten"] == {"mean": 0.125, "low": 0.0, "high": 0.25}
    assert lora["time"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert dora["time"] == {"mean": 2.5, "low": 2.0, "high": 3.0}  # 200 / 100 and 150 / 50
    assert (dora["diverged"], dora["seeds"], dora["test_loss"]["mean"]) == (1, 2, 1.0)
    assert lora["test_calls"] is None and base["time"] is None


def test_markdown_shows_it_and_leaves_empty_columns_out():
    text = table.markdown(table.summarise(RUNS, "chat-200"))
    plain = text.replace(table.NO_BREAK_SPACE, " ").replace(table.JOINER, "")
    head, rule, base, lora, dora = plain.splitlines()
    assert "calls exact" not in head and head.count("|") == rule.count("|") == base.count("|")
    assert "| base model |  | 4.00 | 0% |" in base
    assert "| 0.003 | 1.30 (1.20–1.40) | 40% (30–50) | 100% | 12% (0–25) | capital 25% | 1.00× |" in lora
    assert "| 10 | 1.23 MB |" in lora
    assert "dora (1 of 2 diverged)" in dora and "2.50× (2.00–3.00)" in dora


def test_a_best_rate_at_an_end_is_said():
    mine = table.of_task(RUNS, "chat-200")
    assert table.unbracketed_note(mine, "lora") == ""
    assert "dora: the best rate, 0.003, was not bracketed" in table.unbracketed_note(mine, "dora")
    ends = [record("full", 3.0, 100, 1.0, 0.5), record("full", 1.0, 100, 1.0, 0.4)]
    assert "full: the best rate, 3, is the last of the grid" in table.unbracketed_note(ends, "full")


def test_the_columns_can_be_chosen():
    text = table.markdown(table.summarise(RUNS, "chat-200"), ["row", "trainable"])
    assert (
        text
        == "| method | trainable |\n| --- | --- |\n| base model |  |\n| lora | 10 |\n| dora (1 of 2 diverged) | 10 |\n"
    )
