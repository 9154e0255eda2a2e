"""Explorers: a few controls over a picture that is redrawn when one of them changes.

They use plain ipywidgets (7.7 or newer) and `HTML(value=svg)`. `Output` and `interact` are avoided because what they
leave in a saved notebook differs from run to run. Everything an explorer shows can be read from its attributes, so a
plain cell can move a slider and assert the result.

ipywidgets gives a slider neither an accessible name nor a readable value, has no live regions, and lets JupyterLab take
the keys that are meant for a menu (ipywidgets issue 3912). `page.js`, which every explorer brings along, sees to all
four on the page; `page.css` shows which control has the focus, and menus and sliders on dark and narrow pages.
"""

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ftcourse._extras import require

require("ipywidgets")

import ipywidgets

from ftcourse.plots import figure_svg

# A style element's load handler runs in every front end when the element enters the page, unlike a script's text.
ON_THE_PAGE = '<style onload="{}">{}</style>'.format(
    html.escape(Path(__file__).with_name("page.js").read_text(encoding="utf-8")),
    Path(__file__).with_name("page.css").read_text(encoding="utf-8"),
)


class Explorer(ipywidgets.VBox):
    """Base class: lays out the controls, redraws `picture` and `caption` on every change, and has a short repr.

    A subclass stores its data, creates its controls, calls `super().__init__` and implements `draw` and `state`.

    Args:
        rows: from the top, one control or a sequence of controls that stand side by side.

    Attributes:
        picture: the `ipywidgets.HTML` below the controls.
        caption: the sentence under the picture, set by `draw`. Screen readers read it out when it changes.
        status: the `ipywidgets.HTML` that shows it.
    """

    hint = "move it"  # what a reader of a saved notebook can do once the cell has run

    def __init__(self, *rows: ipywidgets.Widget | Sequence[ipywidgets.Widget]):
        self.caption = ""
        self.picture, self.status = ipywidgets.HTML(), ipywidgets.HTML()
        self.status.add_class("ftkit-status")
        grouped = [[row] if isinstance(row, ipywidgets.Widget) else list(row) for row in rows]
        controls = [control for row in grouped for control in row]
        show_whole_labels(controls)
        wrap = {"flex_flow": "row wrap"}  # on a narrow page below each other
        lines = [row[0] if len(row) == 1 else ipywidgets.HBox(row, layout=wrap) for row in grouped]
        super().__init__([*lines, self.picture, self.status, ipywidgets.HTML(ON_THE_PAGE)])
        self.add_class("ftkit-explorer")
        self.add_class("ftkit" + re.sub("([A-Z])", r"-\1", type(self).__name__).lower())  # ftkit-mask-explorer
        for control in controls:
            if control.has_trait("value"):
                control.observe(self.redraw, names="value")
        self.redraw()

    def __repr__(self) -> str:
        # What a saved notebook stores: the usual repr would contain the whole picture.
        return f"{type(self).__name__}({self.state()}): run the cell to {self.hint}"

    def _repr_mimebundle_(self, **kwargs) -> dict:
        # A notebook that is read without a kernel (on GitHub, in a book) shows the picture as it is now.
        picture = self.picture.value
        drawn = re.match(r"<svg.*?</svg>", picture, re.S)
        still = {"image/svg+xml": drawn[0]} if drawn else {"text/html": picture + self.status.value}
        return super()._repr_mimebundle_(**kwargs) | {"text/plain": repr(self)} | still

    def state(self) -> str:
        """Return the controls' values for the repr."""
        raise NotImplementedError

    def draw(self) -> str:
        """Set `caption` and return the picture's HTML, both for the controls' values."""
        raise NotImplementedError

    def redraw(self, _change=None) -> None:
        """Draw again; the callback of every control."""
        self.picture.value = self.draw()
        # The same widget throughout: of a live region, screen readers notice new text, but not a new region.
        self.status.value = f"<p>{html.escape(self.caption)}</p>"

    def captioned(self, figure, caption: str, title: str = "") -> str:
        """Set `caption` and return the figure as SVG.

        The SVG's accessible name is `title` followed by the caption; without a figure only the caption is shown.
        """
        self.caption = caption
        return figure_svg(figure, title=f"{title} {caption}".strip()) if figure else ""


def show_whole_labels(controls: Iterable[ipywidgets.Widget]) -> None:
    """Make room for the controls' descriptions and for the longest option of a menu; ipywidgets would cut them off.

    The descriptions get one width, so that controls below each other begin at one place.
    """
    controls = list(controls)
    labelled = [control for control in controls if control.style.has_trait("description_width")]
    longest = max((len(control.description) for control in labelled), default=0)
    for control in controls:
        control.layout.max_width = "calc(100% - 2 * var(--jp-widgets-margin, 2px))"  # which stands on both sides
        if isinstance(control, ipywidgets.Button):
            control.layout.width = "auto"
        elif control in labelled:
            control.style.description_width = f"{longest + 1}ch"
            control.layout.width = control.layout.width or f"{longest + 1 + _room(control)}ch"
        if isinstance(control, ipywidgets.SelectionSlider):
            control.add_class("ftkit-list")  # page.js knows it by this


def _room(control: ipywidgets.Widget) -> int:
    """How wide a control is beside its description, in characters."""
    if not control.has_trait("options"):
        return 34
    labels = [option[0] if isinstance(option, tuple) else option for option in control.options]
    return max(map(len, map(str, labels))) + (26 if isinstance(control, ipywidgets.SelectionSlider) else 6)
