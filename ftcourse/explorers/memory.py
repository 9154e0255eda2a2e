"""Pictures of memory: bars of what a rank holds at its peak, and a control that says what fits, and what would."""

from collections.abc import Mapping, Sequence

import ipywidgets

from ftcourse.plots import HATCHES, OKABE_ITO, new_axes
from ftkit.memory.tracker import KINDS

from . import Explorer

ORDER = (*KINDS, "scratch")
COLOURS, MARKS = (*OKABE_ITO, "#999999"), (*HATCHES, "..")  # one pair for each
GIB = 2**30
RESERVE = 0.1  # of a GPU, for the CUDA context, libraries and fragmentation


def plot_memory(bars: Mapping[str, Mapping[str, int]], *, capacity: int | None = None, unit: str = "GiB"):
    """Draw one horizontal bar a plan, stacked by kind of bytes; return the Axes.

    bars: label -> bytes by kind (`Estimate.at_peak`); capacity: bytes of a GPU, drawn as a line; unit: "GiB" or "MiB".
    """
    scale = {"GiB": GIB, "MiB": 2**20}[unit]
    _, ax = new_axes(8.0, 1.3 + 0.42 * len(bars))
    kinds = [kind for kind in ORDER if any(bar.get(kind) for bar in bars.values())]
    left = [0.0] * len(bars)
    for kind in kinds:
        sizes = [bar.get(kind, 0) / scale for bar in bars.values()]
        n = ORDER.index(kind)
        look = {"color": COLOURS[n], "hatch": MARKS[n], "edgecolor": "white"}
        ax.barh(list(bars), sizes, left=left, label=kind, **look)
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    for row, total in enumerate(left):
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # over the line of the capacity
        ax.annotate(f"{total:,.1f}", (total, row), (5, 0), textcoords="offset points", va="center", bbox=box, zorder=5)
    if capacity:
        ax.axvline(capacity / scale, color="black", linestyle="--", linewidth=1.2)
        ax.annotate(
            f"{capacity / scale:,.0f} {unit}",
            (capacity / scale, 1.01),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
        )
    ax.set_xlabel(f"{unit} on a rank, at the peak")
    ax.set_xlim(0, 1.12 * max(*left, (capacity or 0) / scale))
    ax.invert_yaxis()
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax


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
    """Menus of model, method, GPUs and memory of a GPU, over stacked bars of every change.

    `rows` are those of `ftcourse.studies.memory_plans`. Attributes: `model`, `method`, `gpus` and `gib`, the controls;
    `chosen`, the row that is planned; `verdict`, whether it fits and what would change that.
    """

    hint = "choose others"

    def __init__(self, rows: Sequence[Mapping], gib: int = 80):
        self.rows = rows

        def menu(key: str, description: str) -> ipywidgets.Dropdown:
            options = list(dict.fromkeys(row[key] for row in rows))
            return ipywidgets.Dropdown(options=options, description=description)

        self.model, self.method, self.gpus = menu("model", "model"), menu("method", "method"), menu("gpus", "GPUs")
        self.gib = ipywidgets.Dropdown(options=[16, 24, 40, 80, 141, 192], value=gib, description="GiB a GPU")
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
