"""Explorers: a few controls over a picture that is redrawn when one of them changes.

They use plain ipywidgets (7.7 or newer) and `HTML(value=svg)`. `Output` and `interact` are avoided because what they
leave in a saved notebook differs from run to run. Everything an explorer shows can be read from its attributes, so a
plain cell can move a slider and assert the result.
"""

import html
import re
from collections.abc import Sequence

from ftcourse._extras import require

require("ipywidgets")

import ipywidgets

from ftcourse.plots import figure_svg


class Explorer(ipywidgets.VBox):
    """Base class: lays out the controls, redraws `picture` on every change, and has a short repr.

    A subclass stores its data, creates its controls, calls `super().__init__` and implements `draw` and `state`.

    Args:
        rows: from the top, one control or a sequence of controls that stand side by side.

    Attributes:
        picture: the `ipywidgets.HTML` below the controls.
        caption: the sentence under the picture, set by `captioned`.
    """

    hint = "move it"  # what a reader of a saved notebook can do once the cell has run

    def __init__(self, *rows: ipywidgets.Widget | Sequence[ipywidgets.Widget]):
        self.picture = ipywidgets.HTML()
        grouped = [[row] if isinstance(row, ipywidgets.Widget) else list(row) for row in rows]
        lines = [row[0] if len(row) == 1 else ipywidgets.HBox(row) for row in grouped]
        super().__init__([*lines, self.picture])
        self.add_class("ftkit" + re.sub("([A-Z])", r"-\1", type(self).__name__).lower())  # ftkit-mask-explorer
        for control in (control for row in grouped for control in row if control.has_trait("value")):
            control.observe(self.redraw, names="value")
        self.redraw()

    def __repr__(self) -> str:
        # What a saved notebook stores: the usual repr would contain the whole picture.
        return f"{type(self).__name__}({self.state()}): run the cell to {self.hint}"

    def _repr_mimebundle_(self, **kwargs) -> dict:
        # A notebook that is read without a kernel (on GitHub, in a book) shows the picture as it is now.
        picture = self.picture.value
        drawn = re.match(r"<svg.*?</svg>", picture, re.S)
        still = {"image/svg+xml": drawn[0]} if drawn else {"text/html": picture}
        return super()._repr_mimebundle_(**kwargs) | {"text/plain": repr(self)} | still

    def state(self) -> str:
        """Return the controls' values for the repr."""
        raise NotImplementedError

    def draw(self) -> str:
        """Return the picture's HTML for the controls' values."""
        raise NotImplementedError

    def redraw(self, _change=None) -> None:
        """Draw again; the callback of every control."""
        self.picture.value = self.draw()

    def captioned(self, figure, caption: str, title: str = "") -> str:
        """Set `caption` and return the figure as SVG above it.

        The SVG's accessible name is `title` followed by the caption; without a figure only the caption is shown.
        """
        self.caption = caption
        svg = figure_svg(figure, title=f"{title} {caption}".strip()) if figure else ""
        return f'{svg}<p aria-live="polite">{html.escape(caption)}</p>'
