"""The course's own facts: its notebooks, what each needs, and routes through them.

What a notebook promises is read from data/notebooks.json, which notebooks/ledger.py writes from the built notebooks
and which travels with an installed ftkit, so the map works without a checkout.
"""

import html
import json
import re
import textwrap
from dataclasses import dataclass

from ftkit.models import data_dir

from .addresses import notebook_address
from .alternative_text import caption
from .plots import OKABE_ITO, new_axes
from .solved import Progress, list_exercises, progress_file, read_progress

START = "00_start_here"
CONTENTS = {  # part -> notebook -> its topic in a word or two; a notebook without an .ipynb is planned
    "Which weights move": {
        "01_gradient_masks": "gradient masks",
        "02_child_tuning": "child-tuning",
        "02b_inside_the_optimizer": "inside the optimizer",
        "03_fisher_masks": "Fisher masks",
        "04_freezing": "freezing",
    },
    "A run you can trust": {
        "05_chat_templates": "chat templates",
        "06_optimizer_and_schedule": "optimizer and schedule",
        "07_overfit_one_batch": "overfit one batch",
        "08_full_fine_tune": "full fine-tune",
    },
    "Adapters and speed": {
        "09_lora_from_scratch": "LoRA from scratch",
        "10_adapter_family": "the adapter family",
        "11_speed_ups": "speed-ups",
    },
    "Beyond one device": {
        "12_memory": "memory",
        "13_ddp_to_fsdp": "DDP to FSDP",
        "14_delayed_init_and_tensor_parallel": "delayed init, tensor parallel",
        "15_checkpoints_and_faults": "checkpoints and faults",
        "16_fsdp_fine_tune": "sharded fine-tune",
    },
}
OPTIONAL = ("02b_inside_the_optimizer",)  # no other notebook needs them
NEEDS = {  # notebook -> those it builds on directly, without which its code or its words are not explained
    "01_gradient_masks": (START,),
    "02_child_tuning": ("01_gradient_masks",),
    "02b_inside_the_optimizer": ("02_child_tuning",),
    "03_fisher_masks": ("02_child_tuning",),
    "04_freezing": (START,),
    "05_chat_templates": (START,),
    "06_optimizer_and_schedule": ("05_chat_templates",),
    "07_overfit_one_batch": ("05_chat_templates",),
    "08_full_fine_tune": ("05_chat_templates",),
    "09_lora_from_scratch": ("08_full_fine_tune",),
    "10_adapter_family": ("09_lora_from_scratch",),
    "11_speed_ups": ("08_full_fine_tune",),
    "12_memory": ("11_speed_ups",),
    "13_ddp_to_fsdp": ("12_memory",),
    "14_delayed_init_and_tensor_parallel": ("13_ddp_to_fsdp",),
    "15_checkpoints_and_faults": ("14_delayed_init_and_tensor_parallel",),
    "16_fsdp_fine_tune": ("15_checkpoints_and_faults",),
}


@dataclass(frozen=True)
class Route:
    """A way through the course after 00_start_here: each notebook comes after those that it needs."""

    name: str
    purpose: str
    notebooks: tuple[str, ...]


def _numbered(*numbers: str) -> tuple[str, ...]:
    return tuple(name for name in NEEDS if name.partition("_")[0] in numbers)


ROUTES = (
    Route("two hours", "fine-tune a chat model, and check its data first", _numbered("05", "08")),
    Route(
        "one day",
        "the same, and choose optimizer, settings and memory, up to sharding on several GPUs",
        _numbered("01", "02", "05", "06", "07", "08", "09", "11", "12", "13"),
    ),
    Route("everything", "also freezing, Fisher masks, the other adapters, and runs that survive faults", tuple(NEEDS)),
)


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; prints aligned and shows as a table, with links, in a notebook.

    As a table it has the code and the bold words of Markdown, which what a notebook promises may contain.
    """

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    links: dict[str, str]  # a word of a cell -> the notebook that it opens

    def __str__(self) -> str:
        return "\n".join(" · ".join(text for text in row if text) for row in [self.head, *self.rows])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def word(text: str) -> str:
            shown = html.escape(text)
            return f'<a href="{html.escape(self.links[text])}">{shown}</a>' if text in self.links else shown

        def cell(text: str, kind: str) -> str:
            shown = re.sub(r"`([^`]+)`", r"<code>\1</code>", " ".join(map(word, text.split(" "))))
            shown = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", shown)
            return f'<{kind} style="text-align:left">{shown}</{kind}>'

        lines = [[cell(text, "th") for text in self.head]]
        lines += [[cell(text, "td") for text in row] for row in self.rows]
        return "<table>" + "".join(f"<tr>{''.join(line)}</tr>" for line in lines) + "</table>"


def read_notebooks() -> list[dict]:
    """A dict for each notebook after 00_start_here, in the order of CONTENTS: notebook, part, topic, needs, optional,
    ready; once ready also its promise, hardware and time."""
    stored = json.loads((data_dir() / "notebooks.json").read_text(encoding="utf-8"))
    found = {row["notebook"]: row for row in stored}
    return [
        {"ready": False, **found.get(name, {}), "notebook": name, "part": part, "topic": topic}
        | {"needs": NEEDS[name], "optional": name in OPTIONAL}
        for part, names in CONTENTS.items()
        for name, topic in names.items()
    ]


def minutes_of(time: str) -> int:
    """The minutes that a notebook's stated time begins with: 25 for "about 25 minutes with the exercises; …".

    Raises ValueError for a text that states none.
    """
    if re.search(r"\ban hour\b", time.partition(";")[0]):
        return 60
    if not (stated := re.search(r"(\d+) (minute|hour)", time)):
        raise ValueError(f"{time!r} states no minutes: write 'about 25 minutes with the exercises; …'")
    return int(stated[1]) * (60 if stated[2] == "hour" else 1)


def notebook_table() -> Table:
    """The notebooks that are ready, in the order of the walk, each with its minutes and what it needs."""
    ready = [row for row in read_notebooks() if row["ready"]]
    rows = [
        (
            row["notebook"],
            row["promise"] + (" (optional)" if row["optional"] else ""),
            " ".join(map(_number, row["needs"])),
            str(minutes_of(row["time"])),
        )
        for row in ready
    ]
    return Table(("notebook", "what it is about", "needs", "minutes"), rows, _links(ready))


def route_table() -> Table:
    """The routes: for each the notebooks that are ready, in their order, and the minutes that they state."""
    ready = {row["notebook"]: row for row in read_notebooks() if row["ready"]}
    rows = []
    for route in ROUTES:
        names = [name for name in route.notebooks if name in ready]
        minutes = sum(minutes_of(ready[name]["time"]) for name in names)
        total = f"{minutes // 60} h {minutes % 60:02} min".replace(" ", "\u00a0")  # in one line
        rows.append((route.name, route.purpose, " ".join(map(_number, names)), total))
    return Table(("route", "what you can do afterwards", "notebooks", "time"), rows, _links(ready.values()))


def solved_table() -> Table:
    """How many exercises are solved on this machine, of each part and notebook; none where progress is not kept."""
    try:
        progress = read_progress(progress_file())
    except (ImportError, OSError):  # a map without it is better than none
        progress = {}
    exercises = list_exercises()
    done = {exercise.key for exercise in exercises if progress.get(exercise.key, Progress()).solved}
    rows = []
    for part, names in {"Start here": (START,), **CONTENTS}.items():
        own = [exercise for exercise in exercises if exercise.notebook in names]
        cells = []
        for name in names:
            keys = {exercise.key for exercise in own if exercise.notebook == name}
            cells.append(f"{_number(name)} {len(keys & done)}/{len(keys)}" + " ✔" * (bool(keys) and keys <= done))
        total = sum(exercise.key in done for exercise in own)
        rows.append((part, f"{total} of {len(own)}".replace(" ", "\u00a0"), ", ".join(cells)))
    links = [{"notebook": START}, *(row for row in read_notebooks() if row["ready"])]
    return Table(("part", "solved", "by notebook"), rows, _links(links))


def _number(notebook: str) -> str:
    return notebook.partition("_")[0]


def _links(rows) -> dict[str, str]:
    names = [row["notebook"] for row in rows]
    return {shown: notebook_address(name) for name in names for shown in (name, _number(name))}


def depths(needs: dict[str, tuple[str, ...]]) -> dict[str, int]:
    """How many notebooks come before each at least, along the longest chain of needs; START is at 0."""
    found = {START: 0}
    for name in needs:  # which lists a notebook after those that it needs
        found[name] = 1 + max(found[other] for other in needs[name])
    return found


def plot_contents(notebooks: list[dict], ax=None):
    """Draw which notebook needs which: arrows lead from a notebook to those that need it.

    notebooks: as `read_notebooks` gives them. One that is ready is filled, a planned one is dashed and empty, an
    optional one is a square. From left to right they come in the order of their needs; the bands are the parts.
    Returns the Axes.
    """
    places, bands = _places(notebooks)
    right = max(x for x, _ in places.values()) + 0.6
    low = max(bottom for _, bottom in bands.values())
    ax = ax or new_axes(0.97 * (right + 0.6), 0.85 * low)[1]
    for number, (part, (top, bottom)) in enumerate(bands.items()):
        ax.axhspan(top, bottom, color="#f0f0f0" if number % 2 == 0 else "white", zorder=0)
        within = [x for x, y in places.values() if top < y < bottom]
        x, side = (right - 0.1, "right") if max(within) < right - 2.5 else (-0.5, "left")  # where there is room
        ax.text(x, bottom - 0.2, part, ha=side, va="bottom", fontweight="bold")
    for row in notebooks:
        for need in row["needs"]:
            _draw_arrow(ax, places[need], places[row["notebook"]])
    start = {"notebook": START, "topic": "start here", "ready": True, "optional": False}
    for row in [start, *notebooks]:
        x, y = places[row["notebook"]]
        look = {"facecolor": OKABE_ITO[0]} if row["ready"] else {"facecolor": "white", "linestyle": "--"}
        marker = "s" if row["optional"] else "o"
        ax.scatter([x], [y], s=430, marker=marker, edgecolor=OKABE_ITO[0], linewidth=1.5, zorder=2, **look)
        colour = "white" if row["ready"] else "black"
        ax.text(x, y, _number(row["notebook"]), ha="center", va="center", color=colour, zorder=3)
        topic = row["topic"] + (" (optional)" if row["optional"] else "")
        # Above, because arrows leave to the right and downwards.
        ax.text(
            x,
            y - 0.25,
            "\n".join(textwrap.wrap(topic, 15, break_on_hyphens=False)),
            ha="center",
            va="bottom",
            fontsize=8.5,
            zorder=3,
        )
    ax.set(xlim=(-0.6, right), ylim=(low, 0), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    needs = [f"{_number(row['notebook'])} after {' and '.join(map(_number, row['needs']))}" for row in notebooks]
    return caption(ax, f"map of the notebooks, in the order in which they build on each other: {', '.join(needs)}")


def _draw_arrow(ax, start: tuple[float, float], end: tuple[float, float]) -> None:
    """An arrow down from `start`, then right to `end`."""
    look = {"arrowstyle": "-|>", "color": "#555555", "linewidth": 1.3, "shrinkA": 11, "shrinkB": 12}
    look |= {"connectionstyle": "arc3" if start[1] == end[1] else "angle,angleA=-90,angleB=180,rad=4"}
    ax.annotate("", end, start, arrowprops=look, zorder=1)


def _places(notebooks: list[dict]) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[int, int]]]:
    """The x and y of each notebook, START included, and the top and bottom of each part."""
    depth = depths({row["notebook"]: row["needs"] for row in notebooks})
    places: dict[str, tuple[float, float]] = {START: (0, 0.66)}
    bands: dict[str, tuple[int, int]] = {}
    top = 0
    for part in dict.fromkeys(row["part"] for row in notebooks):
        columns: dict[int, list[str]] = {}
        # An optional notebook stands below the others of its column, because nothing follows it.
        for row in sorted((row for row in notebooks if row["part"] == part), key=lambda row: row["optional"]):
            columns.setdefault(depth[row["notebook"]], []).append(row["notebook"])
        for x, names in columns.items():
            for lane, name in enumerate(names):
                places[name] = (x, top + lane + 0.66)
        bands[part] = (top, top + max(map(len, columns.values())))
        top = bands[part][1]
    return places, bands
