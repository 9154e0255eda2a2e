"""Living controls: every state, each drawn once, and only those that the notebook's explorer draws."""

import itertools
import json
import re

import ipywidgets
import matplotlib
import pytest

matplotlib.use("agg")

from docs.book import BookError, controls
from docs.book.controls import Control, axis_of, walk
from docs.book.pictures import Pictures
from ftcourse.explorers import Explorer
from ftcourse.plots import new_axes


class Bars(Explorer):
    """A slider and a menu over one bar; counts how often it draws."""

    drawn = 0

    def __init__(self):
        self.slider = ipywidgets.FloatSlider(value=0.5, min=0, max=1, step=0.5, description="a < b")
        self.menu = ipywidgets.Dropdown(options=[("one", 1), ("</script>", 2)], description="menu")
        super().__init__(self.slider, self.menu)

    def state(self):
        return f"{self.slider.value}"

    def draw(self):
        self.drawn += 1
        _, ax = new_axes(2, 1)
        ax.bar([0], [self.slider.value])  # whatever the menu says
        return self.captioned(ax.figure, f"{self.slider.value:g} </script> {self.menu.label}", "A bar.")


def control():
    bars = Bars()
    return Control(bars, [axis_of(bars.slider), axis_of(bars.menu)], "All of them.")


def test_each_combination_is_one_step_from_the_one_before():
    steps = list(walk([3, 2, 4]))
    assert sorted(steps) == list(itertools.product(range(3), range(2), range(4)))
    for before, after in itertools.pairwise(steps):
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_every_state_is_drawn_once_and_equal_pictures_are_shared(tmp_path):
    alive = control()
    before = alive.explorer.drawn
    states = alive.states("x", Pictures(tmp_path))
    assert alive.explorer.drawn - before <= len(states) == 6
    assert len({state.picture.src for state in states.values()}) == 3 == len(list(tmp_path.rglob("*.svg")))
    assert states[2, 1].caption == "1 </script> </script>"
    assert states[0, 0].name == "A bar. 0 </script> one"


def test_it_begins_in_the_stored_state_and_nothing_in_it_ends_the_script(tmp_path):
    page = control().html("A bar. 0.5 </script> one", "4 · <Bars>", Pictures(tmp_path))
    assert page.count("</script>") == 1
    data = json.loads(re.search(r"<script[^>]*>(.*?)</script>", page, re.S)[1])
    assert data["states"][2] == [1, "0.5 </script> one"] and len(data["states"]) == 6
    assert 'aria-valuetext="0.50"' in page and 'value="1"' in page and "<Bars>" not in page
    assert page.count("<option selected>") == 1
    for name in re.findall(r'<(?:input|select)[^>]*\bid="([^"]+)"', page):
        assert f'<label for="{name}">' in page


def test_a_control_that_drifted_from_its_notebook_is_noticed(tmp_path):
    with pytest.raises(BookError, match=r"Bars .*0\.25"):
        control().html("A bar. 0.25 </script> one", "x", Pictures(tmp_path))


def test_too_many_states_or_bytes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(controls, "STATES", 5)
    with pytest.raises(BookError, match="6 states"):
        control().states("x", Pictures(tmp_path))
    monkeypatch.setattr(controls, "STATES", 6)
    monkeypatch.setattr(controls, "BYTES", 100)
    with pytest.raises(BookError, match="bytes"):
        control().states("x", Pictures(tmp_path))


def test_a_slider_may_be_given_fewer_values():
    axis = axis_of(Bars().slider, [0, 1])
    assert axis.options == ["0.00", "1.00"] and axis.kind == "range"
    listed = axis_of(ipywidgets.SelectionSlider(options=[("1,024", 1024), ("8", 8)], description="GPUs"))
    assert listed.options == ["1,024", "8"] and listed.kind == "range"
