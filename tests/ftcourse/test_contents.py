"""The map's tables and picture, and the checker of its exercise."""

import re

import pytest
import torch

from ftcourse import contents
from ftcourse.exercises.start_here import check_one_step
from ftcourse.plots import figure_svg
from tests import ROOT

STATED = "about 25 minutes with the exercises; its cells run in 10 seconds"
ROWS = [
    {
        "notebook": "01_a", "part": "I", "topic": "a", "ready": True, "promise": "x < y", "hardware": "h",
        "time": STATED, "needs": (contents.START,), "optional": False,
    },
    {"notebook": "02_b", "part": "I", "topic": "b", "ready": False, "needs": ("01_a",), "optional": False},
    {"notebook": "02b_c", "part": "I", "topic": "c", "ready": False, "needs": ("02_b",), "optional": True},
    {"notebook": "03_d", "part": "II", "topic": "d", "ready": False, "needs": ("01_a",), "optional": False},
]  # fmt: skip


def test_only_ready_notebooks_are_listed_and_linked(monkeypatch):
    monkeypatch.setattr(contents, "read_notebooks", lambda: ROWS)
    table = contents.notebook_table()
    assert table.rows == [("01_a", "x < y", "00", "25")]
    assert '<a href="01_a.ipynb">01_a</a>' in table._repr_html_()
    assert "x &lt; y" in table._repr_html_()
    assert "02_b" not in str(table) + table._repr_html_()


def test_an_optional_notebook_is_listed_as_such(monkeypatch):
    ready = [{**ROWS[0], "notebook": "02b_c", "optional": True}]
    monkeypatch.setattr(contents, "read_notebooks", lambda: ready)
    assert contents.notebook_table().rows[0][:2] == ("02b_c", "x < y (optional)")


def test_the_code_and_the_bold_words_of_a_promise_are_shown_as_such(monkeypatch):
    monkeypatch.setattr(contents, "read_notebooks", lambda: [{**ROWS[0], "promise": "**how** `a < b` is built"}])
    shown = contents.notebook_table()._repr_html_()
    assert "<strong>how</strong> <code>a &lt; b</code> is built" in shown
    assert "*" not in shown and "`" not in shown


def test_routes_add_up_the_minutes_of_what_is_ready_and_link_it(monkeypatch):
    monkeypatch.setattr(contents, "read_notebooks", lambda: ROWS)
    routes = (contents.Route("short", "p", ("01_a",)), contents.Route("long", "q", ("01_a", "02_b", "02b_c")))
    monkeypatch.setattr(contents, "ROUTES", routes)
    table = contents.route_table()
    assert table.rows == [
        ("short", "p", "01", "0\u00a0h\u00a025\u00a0min"),
        ("long", "q", "01", "0\u00a0h\u00a025\u00a0min"),
    ]
    assert '<a href="01_a.ipynb">01</a>' in table._repr_html_()
    longer = [{**row, "ready": True, "time": "an hour with the exercises"} for row in ROWS]
    monkeypatch.setattr(contents, "read_notebooks", lambda: longer)
    assert contents.route_table().rows[1][2:] == ("01 02 02b", "3\u00a0h\u00a000\u00a0min")


@pytest.mark.parametrize(
    ("time", "minutes"),
    [(STATED, 25), ("an hour; its cells run in 20 minutes", 60), ("2 hours with the exercises", 120)],
)
def test_minutes_are_those_that_the_time_begins_with(time, minutes):
    assert contents.minutes_of(time) == minutes


def test_a_time_without_minutes_is_refused():
    with pytest.raises(ValueError, match="states no minutes"):
        contents.minutes_of("a while")


def test_every_notebook_needs_earlier_ones_and_no_other_needs_an_optional_one():
    names = [name for part in contents.CONTENTS.values() for name in part]
    assert list(contents.NEEDS) == names
    for place, (name, needs) in enumerate(contents.NEEDS.items()):
        assert needs and set(needs) <= {contents.START, *names[:place]}, name
        assert not set(needs) & set(contents.OPTIONAL), name
    assert set(contents.OPTIONAL) <= set(names)


def test_routes_hold_what_their_notebooks_need_in_order_and_keep_their_promise_of_time():
    ready = {row["notebook"]: row for row in contents.read_notebooks() if row["ready"]}
    for route in contents.ROUTES:
        done = {contents.START}
        for name in route.notebooks:
            assert set(contents.NEEDS[name]) <= done, f"{route.name}: {name}"
            done.add(name)
    limits = {"two hours": 2.2 * 60, "one day": 8 * 60}
    for route in contents.ROUTES[:2]:
        spent = sum(contents.minutes_of(ready[name]["time"]) for name in route.notebooks if name in ready)
        assert spent <= limits[route.name], f"{route.name}: {spent} minutes"
    assert set(contents.ROUTES[2].notebooks) == set(contents.NEEDS)


def test_what_the_map_calls_a_need_is_linked_in_the_prerequisites_of_the_notebook():
    """What needs no more than 00_start_here need not link it."""
    for name, needs in contents.NEEDS.items():
        source = ROOT / "notebooks" / "source" / f"{name}.py"
        if not source.exists():  # planned
            continue
        opening = source.read_text(encoding="utf-8").partition("- **Hardware:**")[0]
        linked = set(re.findall(r"\]\((\w+)\.ipynb\)", opening)) | {contents.START}
        assert set(needs) <= linked, f"{name} links {sorted(linked)}"


def test_the_shipped_file_and_the_contents_name_the_same_notebooks():
    rows = contents.read_notebooks()
    assert [row["notebook"] for row in rows] == list(contents.NEEDS)
    assert "02b_inside_the_optimizer" in contents.NEEDS
    assert contents.notebook_table().rows and contents.route_table().rows


def test_a_notebook_that_the_shipped_file_does_not_know_is_planned(monkeypatch, tmp_path):
    (tmp_path / "notebooks.json").write_text('[{"notebook": "02_child_tuning", "ready": true, "topic": "old"}]')
    monkeypatch.setattr(contents, "data_dir", lambda: tmp_path)
    rows = {row["notebook"]: row for row in contents.read_notebooks()}
    assert len(rows) == len(contents.NEEDS)
    assert [name for name, row in rows.items() if row["ready"]] == ["02_child_tuning"]
    assert rows["02_child_tuning"]["topic"] == "child-tuning"  # of CONTENTS
    assert rows["02b_inside_the_optimizer"]["optional"] and not rows["02_child_tuning"]["optional"]


def test_ready_planned_and_optional_stops_look_different_without_colour():
    ax = contents.plot_contents(ROWS)
    stops = list(ax.collections)
    styles = [stop.get_linestyle()[0][1] is not None for stop in stops]  # True: dashed
    filled = [tuple(stop.get_facecolor()[0][:3]) != (1, 1, 1) for stop in stops]
    square = [len(stop.get_paths()[0].vertices) < 8 for stop in stops]
    assert styles == [False, False, True, True, True]  # 00 first
    assert filled == [True, True, False, False, False]
    assert square == [False, False, False, True, False]
    said = {text.get_text() for text in ax.texts} - {""}
    assert said == {"I", "II", "00", "01", "02", "02b", "03", "start here", "a", "b", "c (optional)", "d"}
    assert figure_svg(ax.figure) == figure_svg(contents.plot_contents(ROWS).figure)


def test_arrows_lead_from_each_need_to_the_right():
    ax = contents.plot_contents(ROWS)
    places = {stop: tuple(offsets.get_offsets()[0]) for stop, offsets in zip(ORDER, ax.collections, strict=True)}
    arrows = {(tuple(text.xyann), tuple(text.xy)) for text in ax.texts if not text.get_text()}
    needed = {(places[need], places[row["notebook"]]) for row in ROWS for need in row["needs"]}
    assert arrows == needed and len(needed) == len(ROWS)
    assert all(start[0] < end[0] for start, end in arrows)
    assert len(set(places.values())) == len(places)  # none on top of another


ORDER = [contents.START, *(row["notebook"] for row in ROWS)]


def test_depth_is_the_longest_chain_of_needs():
    needs = {"a": (contents.START,), "b": ("a",), "c": (contents.START, "b")}
    assert contents.depths(needs) == {contents.START: 0, "a": 1, "b": 2, "c": 3}


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
