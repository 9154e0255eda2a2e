"""The course's own facts, as its notebooks gave them: what each notebook promises, and the claims ledger.

Both come from files that notebooks/ledger.py writes; data/notebooks.json and data/claims.json travel with an
installed ftkit, so the map works without a checkout.
"""

import html
import json
from dataclasses import dataclass

from ftkit.models import data_dir

from .plots import OKABE_ITO, new_axes

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
    "Adapters": {
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

COLUMNS = 5  # the longest part of the walk


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; prints aligned and shows as a table, with links, in a notebook."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    links: dict[str, str]  # a cell's whole text -> the notebook that it opens

    def __str__(self) -> str:
        return "\n".join(" · ".join(text for text in row if text) for row in [self.head, *self.rows])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def cell(text: str, kind: str) -> str:
            shown = html.escape(text)
            if text in self.links:
                shown = f'<a href="{html.escape(self.links[text])}">{shown}</a>'
            return f'<{kind} style="text-align:left">{shown}</{kind}>'

        lines = [[cell(text, "th") for text in self.head]]
        lines += [[cell(text, "td") for text in row] for row in self.rows]
        return "<table>" + "".join(f"<tr>{''.join(line)}</tr>" for line in lines) + "</table>"


def read_notebooks() -> list[dict]:
    """A dict for each notebook after the map: notebook, part, topic, ready; promise, hardware, time once ready."""
    return json.loads((data_dir() / "notebooks.json").read_text(encoding="utf-8"))


def read_ledger() -> list[dict[str, str]]:
    """A dict for each claim that a notebook tested: notebook, verdict, because, claim, source, measured."""
    return json.loads((data_dir() / "claims.json").read_text(encoding="utf-8"))


def notebook_table() -> Table:
    """The notebooks that are ready, in the order of the walk."""
    rows = [row for row in read_notebooks() if row["ready"]]
    return Table(
        ("notebook", "what it is about", "hardware", "time"),
        [(row["notebook"], row["promise"], row["hardware"], row["time"]) for row in rows],
        {row["notebook"]: f"{row['notebook']}.ipynb" for row in rows},
    )


def claim_table() -> Table:
    rows = read_ledger()
    verdicts = [f"{row['verdict']} ({row['because']})" if row["because"] else row["verdict"] for row in rows]
    return Table(
        ("verdict", "claim", "who says so", "measured", "in"),
        [
            (verdict, row["claim"], row["source"], row["measured"], row["notebook"])
            for verdict, row in zip(verdicts, rows, strict=True)
        ],
        {row["notebook"]: f"{row['notebook']}.ipynb" for row in rows},
    )


def plot_contents(notebooks: list[dict], ax=None):
    """Draw the walk, a row for each part: a notebook that is ready is a filled stop, a planned one a dashed ring.

    notebooks: as `read_notebooks` gives them. Returns the Axes.
    """
    parts = list(dict.fromkeys(row["part"] for row in notebooks))
    ax = ax or new_axes(9.0, 1.05 * len(parts))[1]
    for y, part in enumerate(parts):
        stops = [row for row in notebooks if row["part"] == part]
        ax.plot([0, len(stops) - 1], [y, y], color="#999999", linewidth=1.5, zorder=1)
        ax.text(-0.55, y, part, ha="right", va="center", fontweight="bold")
        for x, row in enumerate(stops):
            look = {"facecolor": OKABE_ITO[0]} if row["ready"] else {"facecolor": "white", "linestyle": "--"}
            ax.scatter([x], [y], s=420, edgecolor=OKABE_ITO[0], linewidth=1.5, zorder=2, **look)
            number = row["notebook"][:2]
            ax.text(x, y, number, ha="center", va="center", color="white" if row["ready"] else "black", zorder=3)
            topic = row["topic"] if len(row["topic"]) < 20 else row["topic"].replace(", ", ",\n", 1)
            ax.text(x, y + 0.36, topic, ha="center", va="top", fontsize=8.5)
    ax.set(xlim=(-1.8, COLUMNS - 0.5), ylim=(len(parts) - 0.25, -0.5), xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax
