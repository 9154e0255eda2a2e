"""Pictures of `fully_shard`: a step's order on one rank, the bytes held during it, and the rows of one matrix."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path

import ipywidgets

from ftcourse.alternative_text import caption
from ftcourse.fsdp_steps import (
    BACKWARD,
    EMBEDDING,
    FORWARD,
    GATHER,
    RESHARD,
    ROOT,
    SCATTER,
    Event,
    held_at_moments,
    moments,
)
from ftcourse.plots import OKABE_ITO, new_axes, plot_shards
from ftkit.models import data_dir

from . import Explorer

LINES = ("-", "--", ":")
MB = 1e6  # bytes
RECORD = data_dir() / "results" / "fsdp_step.json"  # made by `python -m ftcourse.studies.fsdp_step`
LOOKS = {  # kind -> colour, hatch, letter in the bar
    GATHER: (OKABE_ITO[0], "", "G"),
    FORWARD: (OKABE_ITO[1], "", "F"),
    BACKWARD: (OKABE_ITO[5], "//", "B"),
    SCATTER: (OKABE_ITO[2], "\\\\", "S"),
}
HELD = "#cccccc"


def read_steps(path: Path = RECORD) -> dict[str, tuple[list[Event], dict[str, int]]]:
    """The stored steps of pocket-base on two ranks: way of wrapping -> events of rank 0, bytes of each unit."""
    steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
    return {name: ([Event(*event) for event in step["events"]], step["bytes"]) for name, step in steps.items()}


def order(events: Sequence[Event]) -> list[tuple[str, str]]:
    """(kind, unit) of each event in order: what two recordings of one step have in common."""
    return [(event.kind, event.unit) for event in sorted(events, key=lambda event: astuple(event)[2:])]


def plot_step(events: Sequence[Event], title: str, ax=None):
    """Draw a row for each unit: its all-gathers, passes and reduce-scatter, grey while it is unsharded.

    Each event takes one place on the x axis, in order; it is not time. Returns Axes.
    """
    from matplotlib.patches import Patch

    units = [event.unit for event in moments(events) if event.kind == FORWARD]
    units += [ROOT] if any(event.unit == ROOT for event in events) else []
    ax = ax or new_axes(9, 1.6 + 0.38 * len(units))[1]
    drawn = sorted((event for event in events if event.kind in LOOKS), key=lambda event: event.start)

    def slot(place: int) -> int:
        """The number of drawn events that begin before this place of the order."""
        return sum(event.start < place for event in drawn)

    for gather in (event for event in drawn if event.kind == GATHER):
        ends = [e.start for e in events if e.kind == RESHARD and e.unit == gather.unit and e.start > gather.start]
        first, last = slot(gather.start), slot(min(ends)) if ends else len(drawn)
        ax.barh(units.index(gather.unit), last - first, left=first, height=0.9, color=HELD)
    for number, event in enumerate(drawn):
        colour, hatch, letter = LOOKS[event.kind]
        look = {"facecolor": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 1}
        row = units.index(event.unit)
        ax.barh(row, 1, left=number, height=0.64, **look)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.9}
        ax.text(number + 0.5, row, letter, ha="center", va="center", fontsize=8, bbox=box)
    turn = slot(min(event.start for event in events if event.kind == BACKWARD))
    ax.axvline(turn, color="black", linestyle=":", linewidth=1)
    for x, text, side in ((turn - 0.2, "forward pass", "right"), (turn + 0.2, "backward pass", "left")):
        ax.text(x, 1.0, text, ha=side, va="bottom", transform=ax.get_xaxis_transform(), fontsize=9)
    ax.set(yticks=range(len(units)), yticklabels=units, ylim=(len(units) - 0.5, -0.5), xticks=[])
    ax.set_title(title, pad=18)
    ax.set(xlim=(-0.2, len(drawn) + 0.2), xlabel="events of rank 0 in their order (not time)")
    patches = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=f"{letter}: {kind}")
        for kind, (colour, hatch, letter) in LOOKS.items()
    ]
    patches.append(Patch(facecolor=HELD, label="unsharded"))
    ax.legend(handles=patches, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(patches))
    return caption(
        ax, "what one rank does in a step, unit by unit: it gathers a unit before each pass and frees it afterwards"
    )


def short(event: Event) -> str:
    """A tick's label: "emb", the layer's number, or "head"."""
    return {EMBEDDING: "emb"}.get(event.unit, event.unit.removeprefix("layer "))


def plot_held(held: Mapping[str, Sequence[tuple[int, int]]], at: Sequence[Event], moment: int, ax=None):
    """Draw the bytes of unsharded parameters and gradients during each pass of a module, a line each way of wrapping.

    held: way of wrapping -> (parameters, gradients) at each moment; at: the moments; moment: the marked one.
    Returns Axes.
    """
    ax = ax or new_axes(8.5, 3.6)[1]
    for number, (name, values) in enumerate(held.items()):
        look = {"color": OKABE_ITO[(0, 5, 2)[number]], "linestyle": LINES[number], "linewidth": 2}
        total = [(parameters + gradients) / MB for parameters, gradients in values]
        ax.step(range(len(total)), total, where="mid", label=name, **look)
        ax.plot([moment], [total[moment]], "o", color=look["color"], markersize=7)
    turn = [event.kind for event in at].index(BACKWARD) - 0.5
    ax.axvline(turn, color="black", linestyle=":", linewidth=1)
    for x, text, side in ((turn - 0.1, "forward", "right"), (turn + 0.1, "backward", "left")):
        ax.text(x, 1.0, text, ha=side, va="bottom", transform=ax.get_xaxis_transform(), fontsize=9)
    ax.axvline(moment, color="#777777", linewidth=1, zorder=0)
    ax.set(xticks=range(len(at)), xticklabels=[short(event) for event in at], xlabel="module that computes")
    ax.set(ylabel="unsharded parameters\nand gradients", ylim=(0, None))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g} MB")
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=len(held))
    return ax


class HeldExplorer(Explorer):
    """A slider over the passes of a step's modules, above `plot_held`.

    Attributes: `slider`, the control; `held`, way of wrapping -> (parameters, gradients) at each moment; `here`, the
    same at the chosen moment.
    """

    def __init__(self, steps: Mapping[str, tuple[Sequence[Event], Mapping[str, int]]]):
        self.held = {name: held_at_moments(events, sizes) for name, (events, sizes) in steps.items()}
        self.at = moments(next(iter(steps.values()))[0])
        self.slider = ipywidgets.IntSlider(value=0, min=0, max=len(self.at) - 1, description="moment")
        super().__init__(self.slider)

    @property
    def here(self) -> dict[str, tuple[int, int]]:
        return {name: values[self.slider.value] for name, values in self.held.items()}

    def peak(self, name: str) -> int:
        """The most bytes of parameters and gradients together."""
        return max(map(sum, self.held[name]))

    def state(self) -> str:
        return f"{len(self.at)} moments"

    def draw(self) -> str:
        moment = self.at[self.slider.value]
        parts = [
            f"{name}: {parameters / MB:.2f} MB of parameters and {gradients / MB:.2f} MB of gradients"
            for name, (parameters, gradients) in self.here.items()
        ]
        caption = f"{moment.unit}, {moment.kind} pass. Unsharded on this rank, {'; '.join(parts)}."
        return self.captioned(plot_held(self.held, self.at, self.slider.value).figure, caption)


def held_explorer(steps: Mapping[str, tuple[Sequence[Event], Mapping[str, int]]]) -> HeldExplorer:
    """Return a `HeldExplorer` of one to three ways of wrapping: name -> events, bytes of each unit.

    Raises ValueError unless the same modules compute in the same order in all of them.
    """
    passes = [[(event.kind, event.unit) for event in moments(events)] for events, _ in steps.values()]
    if not 1 <= len(passes) <= 3 or any(others != passes[0] for others in passes):
        raise ValueError("give one to three ways of wrapping, in each of which the same modules compute in one order")
    return HeldExplorer(steps)


class ShardExplorer(Explorer):
    """A slider for the number of ranks over a picture of which rows of a matrix lie on which rank.

    Attributes: `slider`, the control; `rows_per_rank`, the shards' sizes.
    """

    def __init__(self, rows: int, columns: int, ranks: int = 2, most: int = 8):
        self.rows, self.columns = rows, columns
        self.slider = ipywidgets.IntSlider(value=ranks, min=1, max=most, description="ranks")
        super().__init__(self.slider)

    @property
    def rows_per_rank(self) -> list[int]:
        # FSDP2 cuts like torch.chunk: equal blocks from the top, and the last ranks take what is left.
        block = -(-self.rows // self.slider.value)
        return [min(block, max(0, self.rows - rank * block)) for rank in range(self.slider.value)]

    def state(self) -> str:
        return f"rows_per_rank={self.rows_per_rank}"

    def draw(self) -> str:
        share = max(self.rows_per_rank) / self.rows
        caption = (
            f"{self.rows} × {self.columns} on {self.slider.value} rank(s): rows per rank {self.rows_per_rank}. "
            f"A rank holds at most {share:.0%} of the matrix."
        )
        ax = plot_shards(self.rows_per_rank, columns=self.columns, title="rows of one matrix")
        return self.captioned(ax.figure, caption)


def shard_explorer(rows: int, columns: int, ranks: int = 2) -> ShardExplorer:
    """Return a `ShardExplorer` of a rows × columns matrix over 1 to 8 ranks.

    Raises ValueError for an empty matrix or a number of ranks outside 1 to 8.
    """
    if rows < 1 or columns < 1 or not 1 <= ranks <= 8:
        raise ValueError(f"give a matrix of at least 1 × 1 and 1 to 8 ranks, not {rows} × {columns} on {ranks}")
    return ShardExplorer(rows, columns, ranks)
