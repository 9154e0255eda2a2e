"""Controls that live without a kernel: every state is drawn while the book is made, by the notebook's own explorer.

A living control is native inputs (slider, menus, button) above a picture; `static/controls.js` shows the picture and
the caption of the chosen state. What it draws is compared with what the notebook stored, so that they cannot drift
apart.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import ipywidgets
from markupsafe import Markup

from ftcourse.explorers import Explorer
from ftcourse.svg import name_of
from notebooks.stable import normalise_text

from . import BookError
from .pictures import Picture, Pictures
from .templates import template

STATES, BYTES = 200, 12_000_000  # at most, of one control: what a build has to draw, and a site to hold


@dataclass(frozen=True)
class Axis:
    """One input of a control: `kind` is range, select or button; `options` are shown, `choose` takes a place."""

    name: str
    kind: str
    options: Sequence[str]
    choose: Callable[[int], None]


@dataclass(frozen=True)
class State:
    """What a control shows: `name` is the accessible name that the explorer gave its picture."""

    picture: Picture
    name: str
    caption: str


@dataclass(frozen=True)
class Control:
    """An explorer, its inputs, and a note that says which of its states the book has."""

    explorer: Explorer
    axes: Sequence[Axis]
    note: str

    def states(self, where: str, pictures: Pictures) -> dict[tuple[int, ...], State]:
        """Draw every state: the place that each input has in it -> the state, sorted.

        Raises BookError for more states or bytes than STATES and BYTES.
        """
        sizes = [len(axis.options) for axis in self.axes]
        if math.prod(sizes) > STATES:
            raise BookError(f"a control with {math.prod(sizes)} states, and {STATES} is the limit: leave options out")
        found = {}
        for chosen in walk(sizes):
            for axis, place in zip(self.axes, chosen, strict=True):
                axis.choose(place)
            svg = self.explorer._repr_mimebundle_()["image/svg+xml"]
            found[chosen] = State(pictures.add(svg, where), name_of(svg), self.explorer.caption)
        sources = {state.picture.src for state in found.values()}
        size = sum((pictures.folder / source).stat().st_size for source in sources)
        if size > BYTES:
            raise BookError(f"a control with {size:,} bytes of pictures, and {BYTES:,} is the limit: leave options out")
        return dict(sorted(found.items()))

    def html(self, stored: str, where: str, pictures: Pictures) -> str:
        """The control as HTML, in the state that the notebook stored.

        stored: the accessible name of the picture in the notebook; where: the heading above it. Raises BookError where
        the explorer does not draw the stored state.
        """
        states = self.states(where, pictures)
        named = {normalise_text(state.name): chosen for chosen, state in states.items()}  # as the build may have done
        first = named.get(normalise_text(stored))
        if first is None:
            raise BookError(
                f"no state of {type(self.explorer).__name__} is the stored one, {stored!r}: make it in "
                "docs/book/controls.py as the notebook does, with the notebook's state among its options"
            )
        shown = states[first]
        files = list(dict.fromkeys(_file(state) for state in states.values()))
        title = shown.name.removesuffix(shown.caption).strip() or f"Picture of the control in “{where}”."
        return template("control.html.j2").render(
            id=f"control-{type(self.explorer).__name__.lower()}",
            where=where,
            axes=self.axes,
            first=first,
            img=Markup(shown.picture.img(alt=f"{title} The caption below describes it.")),
            caption=shown.caption,
            note=self.note,
            data={
                "files": files,
                "states": [[files.index(_file(state)), state.caption] for state in states.values()],
            },
        )


def _file(state: State) -> tuple[str, int, int]:
    return state.picture.src, state.picture.width, state.picture.height


def walk(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every combination of places, each one step from the one before: an explorer draws once for each."""
    if not sizes:
        yield ()
        return
    inner = list(walk(sizes[1:]))
    for place in range(sizes[0]):
        yield from ((place, *rest) for rest in (inner if place % 2 == 0 else reversed(inner)))


def axis_of(widget: ipywidgets.Widget, values: Sequence | None = None) -> Axis:
    """The input for an ipywidgets menu or slider: all its options, or `values` of them."""
    options = getattr(widget, "options", None)
    if options is not None:
        pairs = [option if isinstance(option, tuple) else (str(option), option) for option in options]
        pairs = [pair for pair in pairs if values is None or pair[1] in values]
        kind = "range" if isinstance(widget, ipywidgets.SelectionSlider) else "select"
    else:
        stop = widget.max + widget.step / 2
        found = values or list(itertools.takewhile(lambda v: v < stop, itertools.count(widget.min, widget.step)))
        pairs = [(format(value, widget.readout_format), value) for value in found]
        kind = "range"

    def choose(place: int) -> None:
        widget.value = pairs[place][1]

    return Axis(widget.description, kind, [label for label, _ in pairs], choose)


def mask_control() -> Control:
    """01: reserve_p in steps of 0.05 and at the notebook's value, for the first seeds."""
    import torch

    from ftcourse.explorers.gradient_masks import mask_explorer

    gradient = torch.tensor([[0.8, -1.2, 0.3], [0.5, 2.0, -0.7], [-0.4, 0.1, 1.5]])
    seeds, values = range(7, 10), sorted([0.33, *(n / 20 for n in range(1, 21))])
    explorer = mask_explorer(gradient, reserve_p=values[0], seed=seeds[0])

    def choose(place: int) -> None:
        if explorer.seed != seeds[place]:
            explorer.seed = seeds[place]
            explorer.redraw()

    axes = [axis_of(explorer.slider, values), Axis("New seed", "button", [str(seed) for seed in seeds], choose)]
    note = f"This page has {len(values)} values of reserve_p and {len(seeds)} seeds; in Jupyter the control takes any."
    return Control(explorer, axes, note)


def preset_control() -> Control:
    """04: every preset."""
    import transformers

    from ftcourse.explorers.freezing import PresetExplorer, parts_of
    from ftcourse.studies.freezing import LEARNING_RATES, apply_preset
    from ftkit import load_base
    from ftkit.models import data_dir

    transformers.utils.logging.disable_progress_bar()
    parts = {}
    for preset in LEARNING_RATES:
        model, _ = load_base(data_dir() / "pocket-base")
        apply_preset(model, preset)
        parts[preset] = parts_of(model)
    explorer = PresetExplorer(parts)
    return Control(explorer, [axis_of(explorer.menu)], "This page has every preset of the notebook's control.")


def timeline_control() -> Control:
    """12: every choice of the step's timeline, at the speed that the notebook takes."""
    from ftcourse.explorers.timeline import TimelineExplorer

    explorer = TimelineExplorer(400e12)
    axes = [axis_of(menu) for menu in (explorer.model, explorer.gpus, explorer.tokens, explorer.cards)]
    return Control(explorer, axes, "This page has every choice of the notebook's control.")


def memory_control() -> Control:
    """12: every choice of the memory planner for four of its six sizes of a GPU."""
    from ftcourse.explorers.memory import MemoryExplorer
    from ftkit.models import data_dir

    rows = json.loads((data_dir() / "results" / "memory_plans.json").read_text(encoding="utf-8"))
    explorer = MemoryExplorer(rows)
    axes = [axis_of(menu) for menu in (explorer.model, explorer.method, explorer.gpus)]
    axes.append(axis_of(explorer.gib, [24, 40, 80, 141]))
    return Control(explorer, axes, "This page has GPUs of 24, 40, 80 and 141 GiB; in Jupyter, also of 16 and 192.")


def held_control() -> Control:
    """13: every moment of a step, for the three ways of wrapping."""
    from ftcourse.explorers.fsdp import held_explorer, read_steps

    steps = read_steps()
    explorer = held_explorer({way: steps[way] for way in ("whole model", "each layer", "embedding and head too")})
    return Control(explorer, [axis_of(explorer.slider)], "This page has every moment of the notebook's control.")


LIVING = {  # (notebook, class of the explorer) -> what makes it
    ("01_gradient_masks", "MaskExplorer"): mask_control,
    ("04_freezing", "PresetExplorer"): preset_control,
    ("12_memory", "TimelineExplorer"): timeline_control,
    ("12_memory", "MemoryExplorer"): memory_control,
    ("13_ddp_to_fsdp", "HeldExplorer"): held_control,
}


def living(notebook: str, explorer: str) -> Control | None:
    """The living control of a notebook's explorer; None for one that the book shows as a picture."""
    return LIVING[notebook, explorer]() if (notebook, explorer) in LIVING else None
