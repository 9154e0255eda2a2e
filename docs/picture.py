"""Draw docs/memory.svg, the README's picture, from a stored record and by the function that notebook 12 uses.

    python docs/picture.py

The same record gives the same bytes. Change what is drawn here; the SVG is never edited.
"""

import json
from pathlib import Path

from ftcourse.explorers.memory import GIB, plot_memory
from ftcourse.plots import figure_svg
from ftkit.models import data_dir

PATH = Path(__file__).resolve().parent / "memory.svg"
MODEL, GPUS, CHANGE, CAPACITY = "llama-3-8b", (1, 8), "activation checkpointing", 80 * GIB
TITLE = "Estimated peak memory per GPU of fine-tuning Llama 3 8B, by method and number of GPUs, beside 80 GiB"


def svg() -> str:
    """The picture as an SVG file: what each GPU holds at its peak, by kind, for every method on 1 and 8 GPUs."""
    plans = json.loads((data_dir() / "results" / "memory_plans.json").read_text(encoding="utf-8"))
    bars = {
        f"{plan['method']} · {gpus} GPU{'s' * (gpus > 1)}": plan["at_peak"]
        for gpus in GPUS
        for plan in plans
        if (plan["model"], plan["gpus"], plan["change"]) == (MODEL, gpus, CHANGE)
    }
    return figure_svg(plot_memory(bars, capacity=CAPACITY).figure, title=TITLE) + "\n"


if __name__ == "__main__":
    PATH.write_text(svg(), encoding="utf-8")
