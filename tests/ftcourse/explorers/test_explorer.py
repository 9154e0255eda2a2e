"""What every explorer has from its base class: one caption widget, whole labels, and its helper on the page."""

import html
import re

import ipywidgets

from ftcourse.explorers import ON_THE_PAGE, Explorer


class Squares(Explorer):
    def __init__(self):
        self.slider = ipywidgets.IntSlider(value=2, min=0, max=9, description="a long description of the root")
        self.menu = ipywidgets.Dropdown(options=[("small", 1), ("x" * 60, 100)], description="unit")
        self.list = ipywidgets.SelectionSlider(options=[1, 10, 100], description="times")
        self.button = ipywidgets.Button(description="Take the square of another number")
        super().__init__([self.slider, self.menu], self.list, self.button)

    def state(self) -> str:
        return f"root={self.slider.value}"

    def draw(self) -> str:
        self.caption = f"The square of {self.slider.value} is <{self.slider.value**2}>."
        return f"<b>{self.slider.value**2}</b>"


def test_the_caption_is_new_text_in_one_widget():
    explorer = Squares()
    status = explorer.status
    assert status.value == "<p>The square of 2 is &lt;4&gt;.</p>"
    explorer.slider.value = 3
    assert explorer.status is status and status in explorer.children
    assert status.value == "<p>The square of 3 is &lt;9&gt;.</p>" and explorer.picture.value == "<b>9</b>"


def test_what_a_notebook_stores_has_picture_and_caption_and_nothing_of_the_page():
    stored = Squares()._repr_mimebundle_()
    assert stored["text/html"] == "<b>4</b><p>The square of 2 is &lt;4&gt;.</p>"
    assert stored["text/plain"] == "Squares(root=2): run the cell to move it"


def test_descriptions_have_one_width_that_holds_the_longest():
    explorer = Squares()
    controls = explorer.slider, explorer.menu, explorer.list
    assert {control.style.description_width for control in controls} == {"31ch"}
    assert int(explorer.menu.layout.width.removesuffix("ch")) > 31 + 60
    assert explorer.button.layout.width == "auto"
    widths = {control.layout.max_width for control in (*controls, explorer.button)}
    assert widths == {"calc(100% - 2 * var(--jp-widgets-margin, 2px))"}  # with its margins as wide as its place


def test_every_explorer_brings_its_helper_and_marks_what_it_looks_for():
    explorer = Squares()
    assert explorer.children[-1].value == ON_THE_PAGE
    script = html.unescape(re.search(r'<style onload="([^"]*)">', ON_THE_PAGE)[1])
    for name, widget in (
        ("ftkit-explorer", explorer),
        ("ftkit-status", explorer.status),
        ("ftkit-list", explorer.list),
    ):
        assert name in widget._dom_classes and f".{name}" in script.replace('contains("', 'contains(".')
    assert "ftkit-list" not in explorer.slider._dom_classes
    assert "http" not in ON_THE_PAGE and "</style" not in ON_THE_PAGE.removesuffix("</style>")
