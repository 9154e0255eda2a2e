"""A picture of a model's parts, as wide as they have parameters; and a menu of presets that shows what trains."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import ipywidgets
import torch

from ftcourse.alternative_text import caption
from ftcourse.plots import HATCHES, OKABE_ITO, new_axes

from . import Explorer

KINDS = ("embedding", "attention", "MLP", "biases", "norms", "LM head", "added layers")
COLOURS = dict(zip(KINDS, (OKABE_ITO[i] for i in (4, 0, 1, 3, 6, 2, 5)), strict=True))
NARROWEST = 0.022  # of the widest row: parts with fewer parameters are drawn this wide, so that they are seen


@dataclass(frozen=True)
class Part:
    """Parameters of one kind in one row of the picture: a block, or what lies before or after the blocks."""

    row: str
    label: str
    kind: str  # of KINDS
    parameters: int
    trainable: int


def parts_of(model: torch.nn.Module) -> list[Part]:
    """The parts of a decoder-only transformer, in the order of its parameters; biases and norms of a block are one.

    A tied LM head is part of the embedding.
    """
    counts: dict[tuple[str, str, str], list[int]] = {}
    for name, parameter in model.named_parameters():
        total = counts.setdefault(_place(name), [0, 0])
        total[0] += parameter.numel()
        total[1] += parameter.numel() if parameter.requires_grad else 0
    found = [Part(row, label, kind, *total) for (row, label, kind), total in counts.items()]
    rows = list(dict.fromkeys(part.row for part in found))
    return sorted(found, key=lambda part: (rows.index(part.row), KINDS.index(part.kind)))


def shares_of(parts: Iterable[Part]) -> dict[str, float]:
    """The share of all parameters that each kind has, in the order of KINDS; kinds without any are left out."""
    parts = list(parts)
    counts = {kind: sum(part.parameters for part in parts if part.kind == kind) for kind in KINDS}
    total = sum(counts.values())
    return {kind: count / total for kind, count in counts.items() if count}


def plot_anatomy(parts: Iterable[Part], *, title: str, counts: bool = True, ax=None):
    """Draw a row for each block and a box for each part, as wide as its parameters; return the Axes.

    The trainable share of a box is filled, the rest is hatched. Parts below about 2 % of the widest row are widened so
    that they can be seen. `counts` writes the number of parameters under each label.
    """
    from matplotlib.patches import Rectangle

    parts = list(parts)
    rows = list(dict.fromkeys(part.row for part in parts))
    widest = max(sum(part.parameters for part in parts if part.row == row) for row in rows)
    ax = ax or new_axes(9, 0.9 + 0.52 * len(rows))[1]
    right = dict.fromkeys(rows, 0.0)
    for part in parts:
        left, width = right[part.row], max(part.parameters / widest, NARROWEST)
        right[part.row] += width
        top, trains = rows.index(part.row) + 0.08, width * part.trainable / part.parameters
        look = {"linewidth": 0, "height": 0.84}
        ax.add_patch(Rectangle((left, top), trains, facecolor=COLOURS[part.kind], alpha=0.75, **look))
        frozen = {"facecolor": "white", "edgecolor": "#999999", "hatch": "////"}
        ax.add_patch(Rectangle((left + trains, top), width - trains, **frozen, **look))
        ax.add_patch(Rectangle((left, top), width, 0.84, fill=False, edgecolor="black", linewidth=0.6))
        if width > 2 * NARROWEST:
            text = f"{part.label}\n{part.parameters:,}" if counts else part.label
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
            style = {"ha": "center", "va": "center", "fontsize": 7.5, "linespacing": 1.05, "bbox": box}
            ax.text(left + width / 2, top + 0.42, text, **style)
    for row in rows:  # what is too narrow for a label inside
        narrow = [part for part in parts if part.row == row and max(part.parameters / widest, NARROWEST) == NARROWEST]
        text = ", ".join(f"{part.label} {part.parameters:,}" if counts else part.label for part in narrow)
        ax.text(right[row] + 0.012, rows.index(row) + 0.5, text, va="center", fontsize=8)
    ax.set(title=title, xlim=(0, max(right.values()) + 0.2), ylim=(len(rows), 0), xticks=[])
    ax.set_yticks([i + 0.5 for i in range(len(rows))], rows)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return caption(
        ax,
        "a row for each block, a box for each part, as wide as its parameters; filled parts train, hatched ones do not",
    )


def plot_shares(models: Mapping[str, Iterable[Part]], *, title: str, ax=None):
    """Draw one bar per model, divided into the shares of the kinds of parts; return the Axes."""
    ax = ax or new_axes(9, 0.9 + 0.5 * len(models))[1]
    shown = set()
    for row, parts in enumerate(models.values()):
        left = 0.0
        for kind, share in shares_of(parts).items():
            label = kind if kind not in shown else None
            shown.add(kind)
            look = {"color": COLOURS[kind], "edgecolor": "black", "linewidth": 0.6, "alpha": 0.75}
            ax.barh(row, share, left=left, height=0.6, label=label, hatch=HATCHES[KINDS.index(kind)], **look)
            if share > 0.03:
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85}
                ax.text(left + share / 2, row, f"{share:.0%}", ha="center", va="center", fontsize=9, bbox=box)
            left += share
    ax.set(title=title, xlim=(0, 1), ylim=(len(models) - 0.5, -0.5), xticks=[])
    ax.set_yticks(range(len(models)), list(models))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.legend(frameon=False, ncols=len(shown), loc="upper center", bbox_to_anchor=(0.5, 0), fontsize=9)
    return ax


class PresetExplorer(Explorer):
    """A menu of presets over the picture of what trains under each.

    Attributes: `menu`, the control; `trainable`, parameters that train.
    """

    hint = "choose another"

    def __init__(self, parts: Mapping[str, list[Part]]):
        self.parts = parts
        self.menu = ipywidgets.Dropdown(options=list(parts), description="preset")
        super().__init__(self.menu)

    @property
    def trainable(self) -> int:
        return sum(part.trainable for part in self.parts[self.menu.value])

    def state(self) -> str:
        return f"{self.menu.value!r}"

    def draw(self) -> str:
        parts = self.parts[self.menu.value]
        total = sum(part.parameters for part in parts)
        caption = (
            f"{self.menu.value}: {self.trainable:,} of {total:,} parameters train "
            f"({self.trainable / total:.1%}). Filled: trains; hatched: frozen."
        )
        return self.captioned(plot_anatomy(parts, title=self.menu.value, counts=False).figure, caption)


def _place(name: str) -> tuple[str, str, str]:
    """Row, label and kind of a parameter by its name."""
    block = re.search(r"\.(\d+)\.(.+)$", name) if ".added." not in name else None
    row = f"block {block[1]}" if block else ""
    module, _, own = name.rpartition(".")
    label = module.rpartition(".")[2].removesuffix("_proj")
    if ".added." in name:
        return "added layers", "added", "added layers"
    if re.search(r"norm|(^|\.)ln_", module):
        return row or "final norm", "norms", "norms"
    if not block:
        return ("embedding", label, "embedding") if "emb" in module or "wte" in name else ("LM head", label, "LM head")
    if own == "bias":
        return row, "biases", "biases"
    return row, label, "attention" if "attn" in module or "attention" in module else "MLP"
