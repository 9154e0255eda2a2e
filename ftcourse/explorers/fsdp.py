"""What a rank holds of an FSDP model: unsharded parameters during a training step, and the rows of one matrix."""

from collections.abc import Mapping, Sequence

import ipywidgets

from ftcourse.plots import OKABE_ITO, new_axes, plot_shards

from . import Explorer

LINES = ("-", "--", ":")
KB = 1000  # bytes


def plot_gathered(held: Mapping[str, Sequence[int]], moments: Sequence[str], moment: int, ax=None):
    """Draw the bytes of whole parameters over the moments of a training step, a line each way of wrapping.

    held: way of wrapping -> bytes at each moment; moments: their names; moment: the one that is marked. Returns Axes.
    """
    ax = ax or new_axes(8.5, 3.0)[1]
    for number, (name, values) in enumerate(held.items()):
        look = {"color": OKABE_ITO[(0, 5, 2)[number]], "linestyle": LINES[number], "linewidth": 2}
        ax.step(range(len(values)), [v / KB for v in values], where="mid", label=name, **look)
        ax.plot([moment], [values[moment] / KB], "o", color=look["color"], markersize=7)
    ax.axvline(moment, color="#777777", linewidth=1, zorder=0)
    ax.set(title=moments[moment], xlabel="moment of the training step", ylabel="gathered (kB)", ylim=(0, None))
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


class GatherExplorer(Explorer):
    """A slider over the moments of a training step, above `plot_gathered`.

    Attributes: `slider`, the control; `here`, the bytes gathered at the chosen moment.
    """

    def __init__(self, held: Mapping[str, Sequence[int]], moments: Sequence[str]):
        self.held, self.moments = held, moments
        self.slider = ipywidgets.IntSlider(value=0, min=0, max=len(moments) - 1, description="moment")
        super().__init__(self.slider)

    @property
    def here(self) -> dict[str, int]:
        return {name: values[self.slider.value] for name, values in self.held.items()}

    def state(self) -> str:
        return f"{len(self.moments)} moments"

    def draw(self) -> str:
        moment = self.slider.value
        parts = [f"{name}: {held / KB:,.0f} kB" for name, held in self.here.items()]
        caption = f"{self.moments[moment]}. Gathered on this rank, {'; '.join(parts)}."
        return self.captioned(plot_gathered(self.held, self.moments, moment).figure, caption)


def gather_explorer(held: Mapping[str, Sequence[int]], moments: Sequence[str]) -> GatherExplorer:
    """Return a `GatherExplorer` of up to three ways of wrapping.

    Raises ValueError unless every way has a number for each moment.
    """
    if not moments or not 1 <= len(held) <= 3 or any(len(v) != len(moments) for v in held.values()):
        raise ValueError(f"give one to three ways, each with a number of bytes for each of {len(moments)} moments")
    return GatherExplorer(held, moments)


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
