"""The loss of each label of one conversation, with a slider over the optimizer's steps."""

from collections.abc import Mapping, Sequence

import ipywidgets

from ftcourse.plots import HATCHES, OKABE_ITO, new_axes

from . import Explorer

PLACES = ("first", "inside", "last")  # in the answer
COLOURS = dict(zip(PLACES, (OKABE_ITO[1], OKABE_ITO[4], OKABE_ITO[5]), strict=True))
HATCH = dict(zip(PLACES, ("//", HATCHES[0], "xx"), strict=True))


class LabelLossExplorer(Explorer):
    """A slider over steps above one bar for each label.

    Args:
        tokens: the text of each label.
        places: one of PLACES for each.
        losses: step -> nats of each label.

    Attributes: `step_slider`, and `caption`, the mean by place in words. Raises ValueError where lengths differ.
    """

    hint = "move the slider"

    def __init__(self, tokens: Sequence[str], places: Sequence[str], losses: Mapping[int, Sequence[float]]):
        if {len(places), *map(len, losses.values())} != {len(tokens)}:
            raise ValueError(f"there are {len(tokens)} tokens: give each step and `places` as many values")
        self.tokens, self.places, self.losses = tokens, places, losses
        self.top = 1.08 * max(max(values) for values in losses.values())
        self.step_slider = ipywidgets.SelectionSlider(
            options=list(losses), description="step", layout=ipywidgets.Layout(width="28em")
        )
        super().__init__(self.step_slider)

    def state(self) -> str:
        return f"step={self.step_slider.value}"

    def draw(self) -> str:
        values = self.losses[self.step_slider.value]
        figure, ax = new_axes(min(9.0, max(5.0, 0.42 * len(values))), 2.8)
        for place in PLACES:
            at = [i for i, own in enumerate(self.places) if own == place]
            look = {"color": COLOURS[place], "hatch": HATCH[place], "edgecolor": "black", "linewidth": 0.5}
            ax.bar(at, [values[i] for i in at], label=place, **look)
        for i, value in enumerate(values):
            ax.annotate(f"{value:.1f}", (i, value), ha="center", va="bottom", fontsize=8)
        ax.set(ylabel="loss (nats)", ylim=(0, self.top), xticks=range(len(values)))
        ax.set_xticklabels(self.tokens, rotation=60, ha="right", rotation_mode="anchor")
        ax.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), title="place in the answer")
        means = [
            f"{place} {sum(found) / len(found):.1f}"
            for place in PLACES
            if (found := [value for value, own in zip(values, self.places, strict=True) if own == place])
        ]
        caption = f"Step {self.step_slider.value}: mean nats of the labels by place: {', '.join(means)}."
        return self.captioned(figure, caption, "Loss of each label.")
