"""LoRA's schematic, what a start at zero allows by width, and the explained variance of a weight change ΔW by rank."""

from collections.abc import Mapping

import ipywidgets
import torch

from ftcourse.alternative_text import caption
from ftcourse.plots import OKABE_ITO, new_axes

from . import Explorer


def plot_schematic(width: int = 128, r: int = 8, ax=None):
    """Draw a frozen W with LoRA's factors beside it, from x at the left to y at the right; return the Axes.

    W is drawn `width` wide, and A and B `r` thick on the same scale.
    """
    from matplotlib.patches import Rectangle

    ax = ax or new_axes(8.6, 3.0)[1]
    thick = 2.4 * r / width

    def box(x, y, w, h, colour, hatch, label, place, **where):
        look = {"facecolor": colour, "edgecolor": "black", "hatch": hatch, "linewidth": 1.0}
        ax.add_patch(Rectangle((x, y), w, h, **look))
        ax.text(*place, label, fontsize=9, linespacing=1.3, **where)

    middle, low = {"ha": "center", "va": "bottom"}, 1.2 + thick / 2
    box(3.2, 3.0, 2.4, 2.4, "#eeeeee", "////", f"W, frozen: out × in = {width} × {width}", (4.4, 5.5), **middle)
    box(
        2.4, 1.2, 2.4, thick, OKABE_ITO[4], "", f"lora_A, trained\nr × in = {r} × {width}", (3.6, 1.3 + thick), **middle
    )
    side = {"ha": "left", "va": "center"}
    box(5.8, 0.0, thick, 2.4, OKABE_ITO[1], "", f"lora_B, trained\nout × r = {width} × {r}", (6.1 + thick, 0.4), **side)
    arrow = {"arrowstyle": "->", "color": "black", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    for start, end in (
        ((0.6, 4.2), (3.2, 4.2)),
        ((5.6, 4.2), (8.95, 4.2)),
        ((1.4, 4.2), (1.4, low)),
        ((1.4, low), (2.4, low)),
        ((4.8, low), (5.8, low)),
        ((5.8 + thick, low), (9.2, low)),
        ((9.2, low), (9.2, 3.95)),
        ((9.45, 4.2), (10.2, 4.2)),
    ):
        ax.annotate("", end, start, arrowprops=arrow)
    for place, text, size in (((0.35, 4.2), "x", 12), ((10.45, 4.2), "y", 12)):
        ax.text(*place, text, ha="center", va="center", fontsize=size)
    ax.text(9.2, 4.2, "+", ha="center", va="center", fontsize=14, bbox={"boxstyle": "circle", "facecolor": "white"})
    ax.text(7.6, low + 0.12, "× lora_alpha / r", ha="center", va="bottom", fontsize=9)
    ax.set(xlim=(0, 10.8), ylim=(-0.1, 6.0), aspect="equal")
    ax.set_axis_off()
    return caption(
        ax, "x goes through the frozen W, and beside it through lora_A and lora_B; both results are added to y"
    )


def plot_starts(losses: Mapping[str, Mapping[int, Mapping[float, float]]], stable: float = 1.0):
    """Draw, a panel for each start, the final loss over the learning rate by width; return the Axes.

    losses: start -> width -> learning rate -> loss after training, as a fraction of the loss before it. All panels
    have the same axis, and what diverged is drawn at its upper edge. `stable`: the fraction above which a run has
    learnt nothing. Losses are drawn to two digits: further ones differ between processors.
    """
    axes = new_axes(9.0, 3.2, columns=len(losses))[1]
    highest = 10.0
    for ax, (start, by_width) in zip(axes, losses.items(), strict=True):
        for (width, curve), colour, marker in zip(by_width.items(), OKABE_ITO, "osD^v", strict=False):
            values = [min(value, highest) if value == value else highest for value in curve.values()]
            values = [float(f"{value:.2g}") for value in values]
            ax.plot(list(curve), values, marker=marker, markersize=4, color=colour, label=f"width {width:,}")
        ax.axhline(stable, color="#777777", linestyle=":", linewidth=1.2)
        ax.set(xscale="log", yscale="log", title=start, xlabel="learning rate")
    lowest = min(ax.get_ylim()[0] for ax in axes)
    for ax in axes:
        ax.set_ylim(lowest, 1.4 * highest)
    axes[0].set_ylabel(f"loss after / loss before\n({highest:g} and above: at {highest:g})")
    axes[-1].legend(frameon=False, loc="lower left")  # where all widths still have a loss near 1
    return axes


def explained_variance(singular_values: torch.Tensor, r: int) -> float:
    """The share of the squares that the first `r` have: 1 minus the squared relative error of the nearest rank r."""
    squares = singular_values.double().square()
    return (squares[:r].sum() / squares.sum()).item()


def random_like(change: torch.Tensor) -> torch.Tensor:
    """Singular values of a matrix of independent normal numbers, of the change's shape and norm."""
    noise = torch.randn(change.shape, generator=torch.Generator().manual_seed(0))
    return torch.linalg.svdvals(noise * change.norm() / noise.norm())


def plot_singular_values(change: torch.Tensor, losses: Mapping[int, float], r: int, *, name: str):
    """Draw the singular values of ΔW, the first `r` large, and the loss by rank, `r` ringed; return both Axes.

    change: ΔW (out, in); losses: rank -> loss of the base with every ΔW truncated to that rank, in nats per token.
    """
    axes = new_axes(9, 3, columns=2)[1]
    values = torch.linalg.svdvals(change.float())
    number = torch.arange(1, len(values) + 1)
    axes[0].plot(number[:r], values[:r], "o", color=OKABE_ITO[0], markersize=5, label=f"kept at r = {r}")
    axes[0].plot(number[r:], values[r:], ".", color=OKABE_ITO[4], markersize=4, label="truncated")
    axes[0].plot(number, random_like(change), "--", color="black", linewidth=1, label="random, same norm")
    axes[0].set(title=name, xlabel="singular value, in order", ylabel="its size", ylim=(0, None))
    axes[0].legend(frameon=False)
    axes[1].plot(list(losses), list(losses.values()), "-s", color=OKABE_ITO[5], markersize=4)
    axes[1].plot([r], [losses[r]], "o", markersize=13, markerfacecolor="none", color="black")
    axes[1].annotate(f"{losses[r]:.2f}", (r, losses[r]), xytext=(6, 9), textcoords="offset points")
    axes[1].set_xscale("log", base=2)
    axes[1].set_xticks(list(losses), list(losses))
    axes[1].set(title="every ΔW truncated to rank r", xlabel="r", ylabel="loss (nats per token)")
    axes[1].set_ylim(0, 1.2 * max(losses.values()))
    return axes


class RankExplorer(Explorer):
    """A slider for the rank and a menu of matrices over `plot_singular_values`.

    Attributes: `slider` and `menu`, the controls; `explained`, the share of the chosen
    matrix's squared singular values that the rank keeps.
    """

    def __init__(self, changes: Mapping[str, torch.Tensor], losses: Mapping[int, float]):
        self.changes, self.losses = changes, losses
        self.slider = ipywidgets.SelectionSlider(options=list(losses), description="rank r")
        self.menu = ipywidgets.Dropdown(options=list(changes), description="matrix")
        super().__init__([self.slider, self.menu])

    @property
    def explained(self) -> float:
        return explained_variance(torch.linalg.svdvals(self.changes[self.menu.value].float()), self.slider.value)

    def state(self) -> str:
        return f"r={self.slider.value}, {self.menu.value!r}"

    def draw(self) -> str:
        r, name = self.slider.value, self.menu.value
        full = min(self.changes[name].shape)
        noise = explained_variance(random_like(self.changes[name]), r)
        caption = (
            f"{name} at rank {r}, {r / full:.0%} of full rank: {self.explained:.0%} of the variance explained (of a "
            f"random matrix's {noise:.0%}). Every ΔW truncated to that rank: loss {self.losses[r]:.2f} nats per token."
        )
        axes = plot_singular_values(self.changes[name], self.losses, r, name=name)
        return self.captioned(axes[0].figure, caption)
