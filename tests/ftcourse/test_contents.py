"""The map's tables and picture, and the checker of its exercise."""

import pytest
import torch

from ftcourse import contents
from ftcourse.exercises.start_here import check_one_step
from ftcourse.plots import figure_svg

ROWS = [
    {"notebook": "01_a", "part": "I", "topic": "a", "ready": True, "promise": "x < y", "hardware": "h", "time": "t"},
    {"notebook": "02_b", "part": "I", "topic": "b", "ready": False},
    {"notebook": "03_c", "part": "II", "topic": "c", "ready": False},
]  # fmt: skip
CLAIMS = [
    {
        "notebook": "01_a", "verdict": "outdated", "because": "thaw", "claim": "ice is dry", "source": "s",
        "measured": "m",
    },
    {"notebook": "01_a", "verdict": "holds", "because": "", "claim": "ice is cold", "source": "s", "measured": "m"},
]  # fmt: skip


def test_only_ready_notebooks_are_listed_and_linked(monkeypatch):
    monkeypatch.setattr(contents, "read_notebooks", lambda: ROWS)
    table = contents.notebook_table()
    assert table.rows == [("01_a", "x < y", "h", "t")]
    assert '<a href="01_a.ipynb">01_a</a>' in table._repr_html_()
    assert "x &lt; y" in table._repr_html_()
    assert "02_b" not in str(table) + table._repr_html_()


def test_claims_show_their_verdict_and_its_reason(monkeypatch):
    monkeypatch.setattr(contents, "read_ledger", lambda: CLAIMS)
    assert [row[:2] for row in contents.claim_table().rows] == [
        ("outdated (thaw)", "ice is dry"),
        ("holds", "ice is cold"),
    ]


def test_the_shipped_files_have_what_the_tables_show():
    assert len(contents.read_notebooks()) == 16
    assert (
        max(len([r for r in contents.read_notebooks() if r["part"] == p["part"]]) for p in contents.read_notebooks())
        <= contents.COLUMNS
    )
    assert contents.notebook_table().rows and contents.claim_table().rows


def test_ready_and_planned_stops_look_different_without_colour():
    ax = contents.plot_contents(ROWS)
    styles = [stop.get_linestyle()[0][1] is not None for stop in ax.collections]  # True: dashed
    filled = [tuple(stop.get_facecolor()[0][:3]) != (1, 1, 1) for stop in ax.collections]
    assert styles == [False, True, True]
    assert filled == [True, False, False]
    assert {"I", "II", "01", "02", "03", "a", "b", "c"} == {text.get_text() for text in ax.texts}
    assert figure_svg(ax.figure) == figure_svg(contents.plot_contents(ROWS).figure)


ANSWERS = {
    "Right": lambda w, g, lr: w - lr * g,
    "Right: ": lambda w, g, lr: torch.sub(w, g, alpha=lr),
    "Not solved yet": lambda w, g, lr: ...,
    "uphill": lambda w, g, lr: w + lr * g,
    "a whole gradient long": lambda w, g, lr: w - g,
    "the step alone": lambda w, g, lr: lr * g,
    "the step alone: ": lambda w, g, lr: -lr * g,
    "less lr times": lambda w, g, lr: w - lr * g**2,
    "changes the weight": lambda w, g, lr: w.sub_(lr * g),
    "the shape should be": lambda w, g, lr: (w - lr * g).sum(),
    "raised TypeError": lambda w, g: w - g,
}


@pytest.mark.parametrize("said", ANSWERS)
def test_one_step_is_judged_with_the_hint_meant_for_it(said):
    verdict = check_one_step(ANSWERS[said])
    assert said in repr(verdict)
    assert verdict.right == said.startswith("Right")
