"""Pictures of 01_gradient_masks: gradients on one colour scale, and which entries train.

The scale is diverging (ColorBrewer's RdBu, which survives colour blindness): white is 0, and equal colours are equal
numbers in every panel of a picture. Each function draws and returns the figure or the Axes.
"""

from collections.abc import Mapping, Sequence

import torch

from .alternative_text import caption
from .plots import OKABE_ITO, new_axes


def plot_gradients(panels: Mapping[str, torch.Tensor], masks: Mapping[str, torch.Tensor] | None = None):
    """Draw small matrices side by side on one scale, with their numbers and one colour bar; return the figure.

    panels: title -> (rows, columns); all of one shape. masks: title -> bool, False where an entry is hatched.
    Raises ValueError for panels of different shapes.
    """
    from matplotlib.patches import Rectangle

    if len({tuple(values.shape) for values in panels.values()}) != 1 or next(iter(panels.values())).ndim != 2:
        raise ValueError("the panels should be matrices of one shape")
    rows, columns = next(iter(panels.values())).shape
    limit = max(values.abs().max().item() for values in panels.values())
    figure, axes = new_axes(len(panels) * (0.2 + 0.72 * columns) + 1.0, 0.55 + 0.72 * rows, columns=len(panels))
    for ax, (title, values) in zip(list(getattr(axes, "flat", [axes])), panels.items(), strict=True):
        look = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit, "edgecolors": "#dddddd", "linewidth": 1}
        cells = ax.pcolormesh(values.numpy(), **look)
        mask = (masks or {}).get(title, torch.ones_like(values, dtype=torch.bool))
        for row in range(rows):
            for column in range(columns):
                if not mask[row, column]:
                    hatched = {"facecolor": "white", "edgecolor": "#999999", "hatch": "///", "linewidth": 0}
                    ax.add_patch(Rectangle((column, row), 1, 1, **hatched))
                    continue
                value = values[row, column].item()
                colour = "white" if abs(value) > 0.6 * limit else "black"
                ax.text(column + 0.5, row + 0.5, f"{value:.2f}", ha="center", va="center", color=colour)
        ax.set(title=title, xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[], aspect="equal")
        ax.spines[:].set_visible(False)
    bar = figure.colorbar(cells, ax=axes, shrink=0.85, aspect=14, pad=0.02)
    bar.outline.set_visible(False)
    return caption(figure, f"{len(panels)} matrices on one colour scale, row by row; what a mask drops is hatched")


def plot_trained(ways: Mapping[str, Sequence[torch.Tensor]]):
    """Draw for each way, a row, which entries of each layer, a column, train; return the figure.

    ways: name -> bool matrices, one a layer. The title over each gives the share that trains.
    """
    from matplotlib.patches import Rectangle

    layers = max(map(len, ways.values()))
    figure, ax = new_axes(2.3 * layers + 1.2, 2.15 * len(ways))
    for y, (name, matrices) in enumerate(ways.items()):
        ax.text(-0.12, y * 1.25 + 0.5, name, ha="right", va="center", fontweight="bold")
        for x, matrix in enumerate(matrices):
            rows, columns = matrix.shape
            share = f"layer {x + 1}: {matrix.float().mean():.0%} trains"
            ax.text(x * 1.15 + 0.5, y * 1.25 - 0.04, share, ha="center", va="bottom", fontsize=10)
            for row in range(rows):
                for column in range(columns):
                    trains = bool(matrix[row, column])
                    place = (x * 1.15 + column / columns, y * 1.25 + row / rows)
                    look = {"facecolor": OKABE_ITO[0] if trains else "white", "edgecolor": "#999999", "linewidth": 0.8}
                    ax.add_patch(Rectangle(place, 1 / columns, 1 / rows, **look))
    ax.set(xlim=(-0.7, layers * 1.15), ylim=(len(ways) * 1.25 - 0.2, -0.25), xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(False)
    return caption(figure, "which entries of each layer train: filled ones do")


def plot_moved(steps: Sequence[int], shares: Mapping[str, Sequence[float]], curve: Sequence[float], ax=None):
    """Draw the share of the weights that has moved over the steps; return the Axes.

    shares: name -> share at each of `steps`; curve: the formula's value at each.
    """
    ax = ax or new_axes(6.2, 2.9)[1]
    ax.plot(steps, curve, color="#777777", linestyle="--", label="1 - (1 - p)^k")
    for number, (name, values) in enumerate(shares.items()):
        look = {"marker": "os"[number], "linestyle": "none", "color": OKABE_ITO[(0, 5)[number]]}
        ax.plot(steps, values, label=name, **look)
    ax.set(xlabel="optimizer steps k", ylabel="share that has moved", ylim=(0, 1.05), xticks=list(steps))
    ax.legend(frameon=False, loc="center right")
    return ax
