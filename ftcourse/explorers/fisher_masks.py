"""Where masks lie in a model: counted by part, drawn, compared with each other, and under a slider."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import ipywidgets
import torch

from ftcourse.alternative_text import caption
from ftcourse.plots import OKABE_ITO, new_axes
from ftkit.child_tuning import top_fraction_masks
from ftkit.parameters import NORM

from . import Explorer

# "model.layers.3.mlp.up_proj.weight", "transformer.h.3.attn.c_attn.bias": the first numbered module is the layer.
LAYER = re.compile(r"^(?:.*?\.)?([A-Za-z_]\w*\.\d+)\.([^.]+)")
NORM_MODULE = re.compile(f"({NORM})$")


@dataclass(frozen=True)
class Part:
    """A module of a model: `kept` of its `total` weights are in the child."""

    kept: int
    total: int

    @property
    def share(self) -> float:
        return self.kept / self.total


def child_parts(masks: Mapping[str, torch.Tensor]) -> dict[str, Part]:
    """Count the child by part of the model, in the model's order.

    A part is a module of a layer ("layers.0 mlp"; its norms are one part, "layers.0 norms") or, outside the
    layers, a module ("embed_tokens"). `masks` are whole bool tensors by parameter name. Raises ValueError
    where there are none.
    """
    if not masks:
        raise ValueError("there are no masks to count: give the child's, see ftkit.child_tuning.top_fraction_masks")
    counts: dict[str, tuple[int, int]] = {}
    for name, mask in masks.items():
        part = part_of(name)
        kept, total = counts.get(part, (0, 0))
        counts[part] = (kept + int(mask.sum()), total + mask.numel())
    return {part: Part(*count) for part, count in counts.items()}


def part_of(name: str) -> str:
    """The part that a parameter belongs to, by its name."""
    if found := LAYER.match(name):
        layer, module = found.groups()
        return f"{layer} {'norms' if NORM_MODULE.search(module) else module}"
    modules = name.split(".")
    return modules[max(len(modules) - 2, 0)]


def plot_child_map(parts: Mapping[str, Part], reserve_p: float, *, title: str, ax=None):
    """Draw the share of each part that is in the child, from input (top) to output; return the Axes.

    Each part's label gives its number of weights; the dashed line is `reserve_p`, the share that every part
    would have by chance. Shares are drawn in whole per cent, so that the picture does not depend on the last
    digit of a score.
    """
    ax = ax or new_axes(6.4, 1.0 + 0.27 * len(parts))[1]
    shares = [round(100 * part.share) for part in parts.values()]
    labels = [f"{name} ({part.total:,})" for name, part in parts.items()]
    ax.barh(range(len(shares)), shares, height=0.7, color=OKABE_ITO[0])
    for row, share in enumerate(shares):
        ax.annotate(f"{share} %", (1.02, row), xycoords=("axes fraction", "data"), va="center")
    ax.axvline(100 * reserve_p, color=OKABE_ITO[5], linestyle="--", linewidth=1)
    ax.annotate("by chance", (100 * reserve_p, len(shares) - 0.4), xytext=(3, 0), textcoords="offset points", va="top")
    ax.set(title=title, xlabel="weights of each part that are in the mask (%)", xlim=(0, 100))
    ax.set(xticks=range(0, 101, 20), yticks=range(len(shares)), yticklabels=labels)
    ax.set_ylim(len(shares) + 0.4, -0.6)
    return ax


def overlap(mask: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """The fraction of a mask's entries that another mask of the same tensors keeps, too."""
    shared = sum(int((kept & other[name]).sum()) for name, kept in mask.items())
    return shared / sum(int(kept.sum()) for kept in mask.values())


def plot_overlaps(masks: Mapping[str, Mapping[str, torch.Tensor]], *, ax=None):
    """Of each mask (a row), the per cent of its entries that each other mask (a column) keeps, too; return the Axes.

    `masks`: bool tensors by parameter name, by the label of the mask.
    """
    labels = list(masks)
    ax = ax or new_axes(4.6, 3.8)[1]
    shared = [[round(100 * overlap(masks[row], masks[column])) for column in labels] for row in labels]
    ax.imshow(shared, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for row, values in enumerate(shared):
        for column, value in enumerate(values):
            ax.text(column, row, f"{value} %", ha="center", va="center", color="black" if value > 60 else "white")
    ax.set(xticks=range(len(labels)), yticks=range(len(labels)), yticklabels=labels)
    ax.set_xticklabels(labels, rotation=20, ha="right")
    ax.set_title("entries of the row's mask that are in the column's")
    return ax


def plot_patterns(masks: Mapping[str, torch.Tensor]):
    """Masks of one matrix side by side, a dark point for each entry that is kept; return the Axes.

    `masks`: one bool matrix by the label of its mask.
    """
    axes = new_axes(2.0 * len(masks), 2.4, columns=len(masks))[1]
    for ax, (label, mask) in zip(axes, masks.items(), strict=True):
        ax.imshow(mask.numpy(), cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
        ax.set(title=f"{label}: {mask.float().mean():.0%}", xticks=[], yticks=[], xlabel="inputs", ylabel="outputs")
        for side in ("top", "right"):
            ax.spines[side].set_visible(True)
    caption(axes[0], "masks of one matrix, a dark point for each entry that is kept")
    return axes


class ChildExplorer(Explorer):
    """A slider for reserve_p over the map of the child that the largest scores make.

    Attributes: `slider`, the control; `parts`, what is drawn.
    """

    def __init__(self, scores: dict[str, torch.Tensor], reserve_p: float):
        self.scores = scores
        self.slider = ipywidgets.FloatSlider(
            value=reserve_p,
            min=0.01,
            max=0.9,
            step=0.01,
            description="reserve_p",
            readout_format=".2f",
            continuous_update=False,  # each value looks for its threshold among all scores
        )
        super().__init__(self.slider)

    def state(self) -> str:
        return f"reserve_p={self.slider.value:.2f}"

    def draw(self) -> str:
        reserve_p = self.slider.value
        self.parts = child_parts(top_fraction_masks(self.scores, reserve_p))
        fullest = max(self.parts, key=lambda name: self.parts[name].share)
        emptiest = min(self.parts, key=lambda name: self.parts[name].share)
        caption = (
            f"reserve_p {reserve_p:.2f}: {sum(part.kept for part in self.parts.values()):,} weights in the child. "
            f"Fullest: {fullest} ({self.parts[fullest].share:.0%}), "
            f"emptiest: {emptiest} ({self.parts[emptiest].share:.0%})."
        )
        ax = plot_child_map(self.parts, reserve_p, title=f"Fisher mask at reserve_p = {reserve_p:.2f}")
        return self.captioned(ax.figure, caption, "Share of each part in the child.")


def child_explorer(scores: dict[str, torch.Tensor], reserve_p: float = 0.1) -> ChildExplorer:
    """Return a `ChildExplorer`; `scores` as for `ftkit.child_tuning.top_fraction_masks`.

    Raises ValueError if `reserve_p` is outside the slider's [0.01, 0.9].
    """
    if not 0.01 <= reserve_p <= 0.9:
        raise ValueError(f"reserve_p should be from 0.01 to 0.9, and is {reserve_p}")
    return ChildExplorer(scores, reserve_p)
