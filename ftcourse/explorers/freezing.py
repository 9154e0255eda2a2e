"""A map of a model: which entries of which tensor train; and a menu over several such maps."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

import ipywidgets
import torch

from ftcourse.plots import OKABE_ITO, new_axes

from . import Explorer

TILE = 6  # entries across and down: the corner of each matrix that is drawn


def plot_map(trains: Mapping[str, torch.Tensor], *, title: str, ax=None):
    """Draw a row for each block and a column for each kind of module; return the Axes.

    trains: parameter name -> bool, of the parameter's shape, True where an entry trains. A matrix is a square that
    shows its first 6 × 6 entries, a vector a strip of its first 6: filled where they train, hatched where not.
    """
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    places = _places(trains)
    rows = list(dict.fromkeys(row for row, _ in places.values()))
    columns = list(dict.fromkeys(column for _, column in places.values()))
    frames, filled = [], []
    for name, mask in trains.items():
        left, top = columns.index(places[name][1]) + 0.12, rows.index(places[name][0]) + 0.06
        if mask.ndim < 2:  # a strip, below where its matrix is
            left, top, height, corner = left, top + 0.68, 0.16, mask.reshape(1, -1)[:, :TILE]
        else:
            height, corner = 0.6, mask.flatten(1)[:TILE, :TILE]
        frames.append(_box(left, top, 0.76, height))
        wide, high = 0.76 / corner.shape[1], height / corner.shape[0]
        filled += [  # side by side in a row, entries are one box: no seams
            _box(left + wide * first, top + high * row, wide * (last - first), high)
            for row, line in enumerate(corner.tolist())
            for first, last in _runs(line)
        ]
    ax = ax or new_axes(1.8 + 0.5 * len(columns), 1.5 + 0.5 * len(rows))[1]
    looks = (
        (frames, {"facecolor": "white", "edgecolor": "#999999", "hatch": "////", "linewidth": 0}),
        (filled, {"facecolor": OKABE_ITO[0], "linewidth": 0}),
        (frames, {"fill": False, "edgecolor": "black", "linewidth": 0.6}),
    )
    for boxes, look in looks:  # one path each: a small file
        if boxes:
            whole = Path.make_compound_path(*(Path(box, closed=True) for box in boxes))
            ax.add_patch(PathPatch(whole, **look))
    ax.set(title=title, xlim=(0, len(columns)), ylim=(len(rows), 0), aspect="equal")
    ax.set_yticks([i + 0.4 for i in range(len(rows))], rows)
    ax.set_xticks([i + 0.5 for i in range(len(columns))], columns, rotation=90)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def requires_grad_map(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What freezing does, as `plot_map` takes it: each tensor trains whole or not at all."""
    return {name: torch.full(p.shape, p.requires_grad) for name, p in model.named_parameters()}


class PresetExplorer(Explorer):
    """A menu of presets over the map of what trains under each.

    Attributes: `menu`, the control; `trainable`, entries that train.
    """

    hint = "choose another"

    def __init__(self, maps: Mapping[str, Mapping[str, torch.Tensor]]):
        self.maps = maps
        self.menu = ipywidgets.Dropdown(options=list(maps), description="preset")
        super().__init__(self.menu)

    @property
    def trainable(self) -> int:
        return sum(int(mask.sum()) for mask in self.maps[self.menu.value].values())

    def state(self) -> str:
        return f"{self.menu.value!r}"

    def draw(self) -> str:
        trains = self.maps[self.menu.value]
        total = sum(mask.numel() for mask in trains.values())
        caption = (
            f"{self.menu.value}: {self.trainable:,} of {total:,} parameters train "
            f"({self.trainable / total:.1%}). Filled: trains; hatched: frozen."
        )
        return self.captioned(plot_map(trains, title=self.menu.value).figure, caption)


def _places(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Row and column of each parameter: its block, and its module there; outside the blocks, its module and "other"."""
    places, paths = {}, set()  # of modules, within a block
    for name in names:
        module = name.rpartition(".")[0]
        block = re.search(r"\.(\d+)\.(.+)$", module)
        if block and "added" not in module:
            places[name] = f"block {block[1]}", block[2]
            paths.add(block[2])
        else:
            places[name] = module.rpartition("lm_head.")[2].rpartition("model.")[2], "other"
    last = {path: path.rpartition(".")[2] for path in paths}
    times = Counter(last.values())  # GPT-2 has a c_proj in its attention and one in its MLP
    label = {path: (path if times[end] > 1 else end).replace("layernorm", "norm") for path, end in last.items()}
    return {name: (row, label.get(column, column)) for name, (row, column) in places.items()}


def _runs(line: list[bool]) -> list[tuple[int, int]]:
    """Where stretches of True begin and end."""
    edges = [i for i in range(len(line) + 1) if (i > 0 and line[i - 1]) != (i < len(line) and line[i])]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _box(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
