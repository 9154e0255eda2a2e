"""Pictures of a comparison of adapters: every seed a dot, and what a method forgot, domain by domain."""

from collections.abc import Mapping, Sequence

import ipywidgets
import numpy as np

from ftcourse.plots import OKABE_ITO, new_axes

from . import Explorer


def plot_family(panels: Mapping[str, Mapping[str, Sequence[float]]], *, percent: Sequence[str] = ()):
    """Draw one panel a measure, one line a method: every seed a circle, their mean a bar; return the Axes.

    `panels` maps a measure's name to the values by method, in the order of the lines from the top; a method without
    values has an empty line. Measures in `percent` are fractions.
    """
    names = list(next(iter(panels.values())))
    labels = [name.replace(", ", ",\n") for name in names]
    _, axes = new_axes(1.7 * len(panels) + 2, 0.34 * len(names) + 0.9, columns=len(panels))
    axes = np.atleast_1d(axes)
    for ax, (measure, by_name) in zip(axes, panels.items(), strict=True):
        for line, name in enumerate(names):
            values = by_name[name]
            ax.axhline(line, color="0.92", linewidth=0.8, zorder=0)
            if not values:
                continue
            mean = sum(values) / len(values)
            ax.plot([mean, mean], [line - 0.32, line + 0.32], color=OKABE_ITO[5], linewidth=2)
            ax.plot(values, [line] * len(values), "o", color=OKABE_ITO[0], alpha=0.7, markersize=5)
        ax.set_yticks(range(len(names)), labels if ax is axes[0] else [""] * len(names))
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_title(measure.replace(": ", ":\n"), fontsize=10)
        if measure in percent:
            ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        ax.locator_params(axis="x", nbins=3)
    return axes


def plot_movement(panels: Mapping[str, Sequence[Sequence[tuple[float, float]]]]):
    """Draw one panel a method: each matrix a point, at its change of direction and of length; return the Axes.

    `panels` maps a title to the points of each seed, which has a sign of its own.
    """
    axes = np.atleast_1d(new_axes(3 * len(panels), 2.6, columns=len(panels))[1])
    for ax, (title, seeds) in zip(axes, panels.items(), strict=True):
        for sign, colour, points in zip("osD", OKABE_ITO, seeds, strict=False):
            ax.plot(*zip(*points, strict=True), sign, markersize=4, alpha=0.7, color=colour)
        ax.set(title=title, xlabel="turn (1 - cosine)", xlim=(0, None), ylim=(0, None))
    axes[0].set_ylabel("change of length")
    return axes


class ForgettingExplorer(Explorer):
    """A menu of methods over bars: the share of each domain's facts that the method's fine-tune has lost.

    `lines` are those of `ftcourse.studies.adapters.table.summarise`. Attributes: `menu`, the control; `caption`, which
    names the domain that suffered most; `lost`, the shares that are drawn.
    """

    hint = "choose another method"

    def __init__(self, lines: Sequence[Mapping], row: str = "lora", beside: str = "full"):
        self.by_row = {line["row"]: line["forgotten_by_domain"] for line in lines if line["lr"]}
        self.beside = beside
        self.menu = ipywidgets.Dropdown(options=list(self.by_row), value=row, description="method")
        super().__init__(self.menu)

    def state(self) -> str:
        return f"{self.menu.value}"

    def draw(self) -> str:
        row = self.menu.value
        self.lost, other = self.by_row[row], self.by_row[self.beside]
        worst, share = max(self.lost.items(), key=lambda item: item[1])
        mean = sum(self.lost.values()) / len(self.lost)
        most = f", most of {worst} ({share:.0%})" if share > 0 else ""
        caption = f"{row}: {mean:.0%} of the facts lost, mean over domains{most}."
        figure, ax = new_axes(6.0, 0.24 * len(self.lost) + 0.8)
        order = sorted(self.lost, key=lambda domain: (-self.lost[domain], domain))
        ax.barh(order, [self.lost[domain] for domain in order], color=OKABE_ITO[0], label=row)
        ax.plot([other[domain] for domain in order], order, "D", color=OKABE_ITO[5], label=self.beside)
        ax.set_xlim(0, 1.02)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        ax.set_xlabel("facts lost")
        ax.invert_yaxis()
        ax.legend(loc="lower right", fontsize=9)
        return self.captioned(figure, caption, "Facts lost by domain.")
