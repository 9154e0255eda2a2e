"""Pictures of memory: bars of what a rank holds at its peak, and a control that says what fits, and what would."""

from collections.abc import Mapping, Sequence

import ipywidgets

from ftcourse.alternative_text import caption
from ftcourse.plots import HATCHES, OKABE_ITO, new_axes
from ftkit.memory.tracker import KINDS

from . import Explorer

ORDER = (*KINDS, "scratch")
COLOURS, MARKS = (*OKABE_ITO, "#999999"), (*HATCHES, "-\\\\")  # one pair for each
GIB = 2**30
RESERVE = 0.1  # of a GPU, for the CUDA context, libraries and fragmentation


def plot_memory(
    bars: Mapping[str, Mapping[str, int]], *, capacity: int | Mapping[str, int] | None = None, unit: str = "GiB"
):
    """Draw one horizontal bar a plan, stacked by kind of bytes, with its total at the right; return the Axes.

    bars: label -> bytes by kind (`Estimate.at_peak`); capacity: bytes of a GPU, drawn as a line across all bars, or by
    label, across its own; unit: "GiB" or "MiB".
    """
    scale = {"GiB": GIB, "MiB": 2**20}[unit]
    _, ax = new_axes(8.0, 1.7 + 0.42 * len(bars))
    kinds = [kind for kind in ORDER if any(bar.get(kind) for bar in bars.values())]
    left = [0.0] * len(bars)
    for kind in kinds:
        sizes = [bar.get(kind, 0) / scale for bar in bars.values()]
        n = ORDER.index(kind)
        look = {"color": COLOURS[n], "hatch": MARKS[n], "edgecolor": "white"}
        ax.barh(list(bars), sizes, left=left, label={"scratch": "temporaries"}.get(kind, kind), **look)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    each = capacity if isinstance(capacity, Mapping) else dict.fromkeys(bars, capacity or 0)
    room = [each.get(label, 0) / scale for label in bars]
    # In a column beside the bars, where no line crosses them.
    for row, (total, limit) in enumerate(zip(left, room, strict=True)):
        said = f"{total:,.1f}" + (f" of {limit:,.0f}" if isinstance(capacity, Mapping) else "")
        ax.annotate(said, (1.01, row), xycoords=("axes fraction", "data"), va="center")
        if isinstance(capacity, Mapping) and limit:
            ax.plot([limit, limit], [row - 0.45, row + 0.45], color="black", linestyle="--", linewidth=1.6)
    if capacity and not isinstance(capacity, Mapping):
        ax.axvline(capacity / scale, color="black", linestyle="--", linewidth=1.2)
        at = (capacity / scale, 1.01)
        ax.annotate(f"{capacity / scale:,.0f} {unit}", at, xycoords=("data", "axes fraction"), ha="center", va="bottom")
    dashed = "; dashed: what its GPU has" if isinstance(capacity, Mapping) else ""
    ax.set_xlabel(f"{unit} on a rank, at the peak{dashed}")
    ax.set(xlim=(0, 1.05 * max(*left, *room)), ylim=(len(bars) - 0.4, -0.75))
    ax.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.45 / (0.3 + 0.42 * len(bars))))
    return ax


def plot_collectives(ranks: int = 4):
    """Draw what the ranks hold before and after each collective, a column per rank; return the Axes."""
    _, axes = new_axes(9.0, 3.0, columns=3)
    every = range(ranks)
    sums = {part: f"Σ{part}" for part in every}
    own = {rank: {part: f"{part}" for part in every} for rank in every}
    after = {
        "all-gather": {rank: {part: str(part) for part in every} for rank in every},
        "reduce-scatter": {rank: {rank: sums[rank]} for rank in every},
        "all-reduce": dict.fromkeys(every, sums),
    }
    before = {"all-gather": {rank: {rank: str(rank)} for rank in every}, "reduce-scatter": own, "all-reduce": own}
    for ax, name in zip(axes, after, strict=True):
        for top, held in ((0, before[name]), (ranks + 1.2, after[name])):
            for rank, parts in held.items():
                for part, text in parts.items():
                    look = {"color": COLOURS[part], "hatch": MARKS[part], "edgecolor": "white"}
                    ax.barh(top + part, 0.9, left=rank, height=0.9, **look)
                    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
                    ax.text(rank + 0.45, top + part, text, ha="center", va="center", fontsize=8, bbox=box)
        ax.annotate("", (ranks / 2, ranks + 0.6), (ranks / 2, ranks - 0.4), arrowprops={"arrowstyle": "-|>"})
        ax.set(title=name, xticks=[rank + 0.45 for rank in every], xticklabels=[f"rank {rank}" for rank in every])
        ax.set(yticks=[], ylim=(2 * ranks + 0.8, -0.6))
        ax.tick_params(axis="x", labelsize=8.5, length=0)
        ax.spines[:].set_visible(False)
    caption(axes[0], "what each rank holds, above before a collective and below after it")
    return axes


def fits(row: Mapping, capacity: int) -> bool:
    """Whether the peak leaves a tenth of `capacity` bytes free."""
    return row["peak"] <= capacity * (1 - RESERVE)


def first_change(rows: Sequence[Mapping], chosen: Mapping, capacity: int) -> str:
    """What would make the chosen row fit, in words: changes in their order, then more GPUs, then another method.

    rows: those of `ftcourse.studies.memory_plans`; a change includes those before it. Empty where it fits, or nothing
    does.
    """
    if fits(chosen, capacity):
        return ""
    near = [row for row in rows if row["model"] == chosen["model"] and fits(row, capacity)]
    same = [row for row in near if row["method"] == chosen["method"]]
    for row in same:
        if row["gpus"] == chosen["gpus"]:
            return row["change"]
    for row in sorted(same, key=lambda row: row["gpus"]):
        if row["gpus"] > chosen["gpus"]:
            return f"{row['gpus']} GPUs{_with(row)}"
    others = [row for row in near if row["gpus"] == chosen["gpus"]]
    return f"{others[0]['method']}{_with(others[0])}" if others else ""


def _with(row: Mapping) -> str:
    return "" if row["change"] == "as planned" else f", with {row['change']}"


class MemoryExplorer(Explorer):
    """Menus of models and methods and sliders for GPUs and the memory of one, over stacked bars of every change.

    `rows` are those of `ftcourse.studies.memory_plans`. Attributes: `model`, `method`, `gpus` and `gib`, the controls;
    `chosen`, the row that is planned; `verdict`, whether it fits and what would change that.
    """

    hint = "choose others"

    def __init__(self, rows: Sequence[Mapping], gib: int = 80):
        self.rows = rows

        def options(key: str) -> list:
            return list(dict.fromkeys(row[key] for row in rows))

        self.model = ipywidgets.Dropdown(options=options("model"), description="model")
        self.method = ipywidgets.Dropdown(options=options("method"), description="method")
        self.gpus = ipywidgets.SelectionSlider(options=options("gpus"), description="GPUs")
        sizes = [16, 24, 40, 80, 141, 192]
        self.gib = ipywidgets.SelectionSlider(options=sizes, value=gib, description="GiB per GPU")
        super().__init__((self.model, self.method), (self.gpus, self.gib))

    def state(self) -> str:
        return f"{self.model.value}, {self.method.value}, {self.gpus.value} GPUs of {self.gib.value} GiB"

    def draw(self) -> str:
        wanted = {"model": self.model.value, "method": self.method.value, "gpus": self.gpus.value}
        shown = [row for row in self.rows if wanted.items() <= row.items()]
        capacity = self.gib.value * GIB
        self.chosen = shown[0]
        change = first_change(self.rows, self.chosen, capacity)
        if fits(self.chosen, capacity):
            self.verdict = "fits"
        else:
            self.verdict = f"does not fit; first change that would do: {change or 'none of these'}"
        caption = f"{self.model.value}, {self.method.value}, {self.gpus.value} × {self.gib.value} GiB: {self.verdict}"
        ax = plot_memory({row["change"]: row["at_peak"] for row in shown}, capacity=capacity)
        return self.captioned(ax.figure, caption)
