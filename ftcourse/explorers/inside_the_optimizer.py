"""Pictures of 02b: which part of a mask each rank draws, which entries have moved, how long a step takes."""

from collections.abc import Mapping, Sequence
from statistics import median

import ipywidgets
import torch

from ftcourse.plots import OKABE_ITO, new_axes
from ftkit.child_tuning import gradient_mask

from . import Explorer
from .child_tuning import draw_mask

SIDE, RESERVE_P, SEED = 12, 0.3, 7
LABELS = {  # of the benchmark's optimizers
    "original arithmetic": "the paper's arithmetic, F",
    "ours, task-free": "ChildTuningAdamW, F",
    "ours, task-dependent, dense": "ChildTuningAdamW, D, dense state",
    "ours, task-dependent, compact": "ChildTuningAdamW, D, compact state",
}


def shard_rows(rank: int, ranks: int) -> slice:
    """The rows of a SIDE×SIDE weight that a rank holds, cut as `torch.chunk` cuts: the last ranks may hold fewer."""
    each = -(-SIDE // ranks)
    return slice(min(rank * each, SIDE), min((rank + 1) * each, SIDE))


def stateful_mask(ranks: int) -> torch.Tensor:
    """The mask when each rank seeds a generator alike and draws its own rows."""
    parts = []
    for rank in range(ranks):
        rows = shard_rows(rank, ranks)
        generator = torch.Generator().manual_seed(SEED)
        parts.append(torch.rand(rows.stop - rows.start, SIDE, generator=generator) < RESERVE_P)
    return torch.cat(parts)


def hashed_mask(ranks: int) -> torch.Tensor:
    """The mask when each rank computes the hash of the elements that it holds."""
    key = {"seed": SEED, "step": 1, "name": "weight"}
    regions = [(shard_rows(rank, ranks), slice(0, SIDE)) for rank in range(ranks)]
    return torch.cat([gradient_mask((SIDE, SIDE), RESERVE_P, **key, region=region) for region in regions])


def plot_shards_of_masks(masks: Mapping[str, torch.Tensor], full: Mapping[str, torch.Tensor], ranks: int):
    """Draw each mask with the ranks' borders; a cross marks an entry that differs from the unsharded mask.

    Return the figure.
    """
    figure, axes = new_axes(4.2 * len(masks), 4.2, columns=len(masks))
    for ax, (name, mask) in zip(axes, masks.items(), strict=True):
        draw_mask(ax, mask)
        rows, columns = (mask != full[name]).nonzero(as_tuple=True)
        look = {"color": OKABE_ITO[5], "markeredgecolor": "white", "markersize": 11}
        ax.plot(columns + 0.5, rows + 0.5, "X", **look)
        for rank in range(1, ranks):
            ax.axhline(shard_rows(rank, ranks).start, color="black", linewidth=2.5)
        for rank in range(ranks):
            part = shard_rows(rank, ranks)
            if part.start < part.stop:
                ax.text(-0.3, (part.start + part.stop) / 2, f"rank {rank}", ha="right", va="center", fontsize=9)
        ax.set_title(f"{name}: {len(rows)} of {mask.numel()} differ")
    return figure


class ShardExplorer(Explorer):
    """A slider for the number of ranks over `plot_shards_of_masks`.

    Attributes: `slider`, the control; `differing`, how many entries of the (stateful, hashed) mask differ from the
    unsharded one.
    """

    def __init__(self):
        self.slider = ipywidgets.IntSlider(value=3, min=1, max=6, description="ranks")
        super().__init__(self.slider)

    def state(self) -> str:
        return f"ranks={self.slider.value}"

    def draw(self) -> str:
        ranks = self.slider.value
        makers = {"seeded generators": stateful_mask, "hashed elements": hashed_mask}
        masks = {name: make(ranks) for name, make in makers.items()}
        full = {name: make(1) for name, make in makers.items()}
        self.differing = tuple(int((masks[name] != full[name]).sum()) for name in makers)
        counts = " and ".join(f"{count} with {name}" for count, name in zip(self.differing, makers, strict=True))
        caption = f"{ranks} rank{'s' if ranks > 1 else ''}: of {SIDE * SIDE} entries, {counts} differ from one rank's."
        return self.captioned(plot_shards_of_masks(masks, full, ranks), caption)


def shard_explorer() -> ShardExplorer:
    return ShardExplorer()


def plot_moved(shares: Mapping[int, float], reserve_p: float, *, ax=None):
    """Draw the share of entries that have moved by step, on the curve 1 - (1 - p)^k; return the Axes."""
    ax = ax or new_axes(6.0, 3.2)[1]
    steps = sorted(shares)
    predicted = [100 * (1 - (1 - reserve_p) ** step) for step in steps]
    ax.plot(steps, predicted, color=OKABE_ITO[6], label="1 − (1 − p)^k")
    measured = [round(100 * shares[step]) for step in steps]
    ax.plot(steps, measured, "o", color=OKABE_ITO[5], markersize=8, label="measured")
    for step, share in zip(steps, measured, strict=True):
        if step in (1, 2, 5, 10):
            ax.annotate(f"{share} %", (step, share), (6, -14), textcoords="offset points")
    ax.set(xlabel="step k", ylabel="entries that have moved (%)", ylim=(0, 110), xlim=(0.5, max(steps) + 1))
    ax.legend(frameon=False, loc="lower right")
    return ax


def plot_step_times(seconds: Mapping[str, Sequence[float]], *, ax=None):
    """Draw each optimizer's step: the median in milliseconds as a bar, with a line from least to most.

    Return the Axes.
    """
    ax = ax or new_axes(7.0, 1.0 + 0.4 * len(seconds))[1]
    for place, (name, times) in enumerate(seconds.items()):
        middle = 1e3 * median(times)
        colour = OKABE_ITO[5] if name.startswith("ours") else OKABE_ITO[0]
        hatch = "//" if name.startswith("ours") else ""
        ax.barh(place, middle, color=colour, alpha=0.6, height=0.6, hatch=hatch, edgecolor="white")
        ax.hlines(place, 1e3 * min(times), 1e3 * max(times), color="black")
        ax.text(1e3 * max(times) + 4, place, f"{middle:.3g} ms", va="center")
    ax.set(xlabel="optimizer step, 10 million parameters, two CPU cores (ms)", yticks=range(len(seconds)))
    ax.set_yticklabels([LABELS.get(name, name) for name in seconds])
    ax.set(ylim=(len(seconds) - 0.5, -0.5), xlim=(0, 1.15e3 * max(max(times) for times in seconds.values())))
    return ax
