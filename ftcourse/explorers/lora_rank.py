"""The explained variance of a weight change ΔW by rank: a picture, and a slider for the rank."""

from collections.abc import Mapping

import ipywidgets
import torch

from ftcourse.plots import OKABE_ITO, new_axes

from . import Explorer


def explained_variance(singular_values: torch.Tensor, r: int) -> float:
    """The share of the squares that the first `r` have: 1 minus the squared relative error of the nearest rank r."""
    squares = singular_values.double().square()
    return (squares[:r].sum() / squares.sum()).item()


def random_like(change: torch.Tensor) -> torch.Tensor:
    """Singular values of a matrix of independent normal numbers, of the change's shape and norm."""
    noise = torch.randn(change.shape, generator=torch.Generator().manual_seed(0))
    return torch.linalg.svdvals(noise * change.norm() / noise.norm())


def plot_singular_values(change: torch.Tensor, losses: Mapping[int, float], r: int, *, name: str):
    """Draw the change's singular values, the first `r` large, and the loss by rank, `r` ringed; return both Axes.

    change: (out, in); losses: rank -> loss of the base with every change cut to that rank, in nats a token.
    """
    axes = new_axes(9, 3, columns=2)[1]
    values = torch.linalg.svdvals(change.float())
    number = torch.arange(1, len(values) + 1)
    axes[0].plot(number[:r], values[:r], "o", color=OKABE_ITO[0], markersize=5, label=f"kept at r = {r}")
    axes[0].plot(number[r:], values[r:], ".", color=OKABE_ITO[4], markersize=4, label="cut")
    axes[0].plot(number, random_like(change), "--", color="black", linewidth=1, label="random, same norm")
    axes[0].set(title=name, xlabel="singular value, by size", ylabel="its size", ylim=(0, None))
    axes[0].legend(frameon=False)
    axes[1].plot(list(losses), list(losses.values()), "-s", color=OKABE_ITO[5], markersize=4)
    axes[1].plot([r], [losses[r]], "o", markersize=13, markerfacecolor="none", color="black")
    axes[1].annotate(f"{losses[r]:.2f}", (r, losses[r]), xytext=(6, 9), textcoords="offset points")
    axes[1].set_xscale("log", base=2)
    axes[1].set_xticks(list(losses), list(losses))
    axes[1].set(title="every change cut to rank r", xlabel="r", ylabel="loss (nats a token)", ylim=(0, None))
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
        noise = explained_variance(random_like(self.changes[name]), r)
        caption = (
            f"{name} at rank {r}: {self.explained:.0%} of the squared singular values kept (of a random matrix's "
            f"{noise:.0%}). Every change cut to that rank: loss {self.losses[r]:.2f} nats a token."
        )
        axes = plot_singular_values(self.changes[name], self.losses, r, name=name)
        return self.captioned(axes[0].figure, caption)
