"""Pictures of the mask tournament: effects with intervals beside what was predicted, and curves by epoch."""

import statistics
from collections.abc import Sequence

import ipywidgets

from ftcourse.plots import OKABE_ITO, new_axes
from ftcourse.studies.masks import (
    ADAMW,
    CONTROL,
    F_FEWER,
    F_MORE,
    FISHER,
    FISHER_LINEAR,
    FISHER_MORE,
    LIFT,
    LORA,
    LOSS,
    MAGMA,
    MAGNITUDE,
    PREDICTIONS,
    RANDOM,
    SCORE,
    UPDATE,
    F,
    Tournament,
)

from . import Explorer

LABELS = {  # of a figure's rows
    ADAMW: "AdamW, all weights",
    CONTROL: "AdamW, √0.3 × F's learning rate",
    F: "F: masked gradients, p = 0.3",
    F_FEWER: "F, p = 0.2",
    F_MORE: "F, p = 0.5",
    UPDATE: "masked updates, p = 0.5",
    MAGMA: "Magma, p = 0.5",
    RANDOM: "fixed random tenth",
    FISHER: "D: Fisher mask, a tenth",
    FISHER_MORE: "D, three tenths",
    FISHER_LINEAR: "D, a tenth of the linear layers",
    MAGNITUDE: "largest weights, a tenth",
    LIFT: "largest after rank reduction",
    LORA: "LoRA, as many parameters",
}
LOOKS = {  # colour, marker, line: by kind of method
    ADAMW: (OKABE_ITO[6], "o", "-"),
    CONTROL: (OKABE_ITO[6], "s", ":"),
    **dict.fromkeys((F, F_FEWER, F_MORE), (OKABE_ITO[0], "D", "-")),
    **dict.fromkeys((UPDATE, MAGMA), (OKABE_ITO[2], "v", "-.")),
    **dict.fromkeys((FISHER, FISHER_MORE, FISHER_LINEAR), (OKABE_ITO[5], "^", "--")),
    RANDOM: (OKABE_ITO[4], "X", "-."),
    MAGNITUDE: (OKABE_ITO[1], "P", "--"),
    LIFT: (OKABE_ITO[1], "*", "-"),
    LORA: (OKABE_ITO[3], "h", "-"),
}
UNITS = {
    SCORE: "exact match on new questions (%)",
    "heldout_domains_exact": "exact match in held-out domains (%)",
    LOSS: "loss on new questions (nats per token)",
    "train_loss": "training loss (nats per token)",
    "kept": "facts kept in the pretraining format (%)",
}
SIGNS = {1: "better", 0: "no difference", -1: "worse"}


def plot_effects(
    study: Tournament,
    task: str,
    methods: Sequence[str] = (),
    measure: str = SCORE,
    *,
    predicted: bool = False,
    ax=None,
):
    """Each method's difference from AdamW with its 95 % interval over paired seeds; return the Axes.

    With `predicted`, the right margin says what was expected before the runs, and an arrow head marks its side.
    """
    rows = [method for method in methods or study.methods(task) if method != ADAMW]
    ax = ax or new_axes(6.6, 0.9 + 0.33 * len(rows))[1]
    scale, unit = (1, "nats") if measure.endswith("loss") else (100, "percentage points")
    ax.axvline(0, color="#888888", linewidth=1)
    for place, method in enumerate(rows):
        found, (colour, marker, _) = study.effect(task, method, measure), LOOKS[method]
        ax.hlines(place, scale * found.low, scale * found.high, color=colour, linewidth=2)
        filled = "white" if method == CONTROL else colour
        ax.plot(scale * found.mean, place, marker, color=colour, markerfacecolor=filled, markersize=8)
        if predicted:
            text = f"expected: {SIGNS[PREDICTIONS[method].sign]}"
            ax.annotate(text, (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    ax.set(title=f"{task}: {UNITS[measure].rpartition(' (')[0]}", xlabel=f"difference from AdamW, {unit}")
    ax.set(yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.5))
    ax.set_yticklabels([LABELS[method] for method in rows])
    ax.grid(axis="x", color="#dddddd")
    ax.set_axisbelow(True)
    return ax


def plot_curves(study: Tournament, task: str, methods: Sequence[str], measure: str = SCORE, *, ax=None):
    """Methods by epoch: means over seeds, and a thin line for each seed of the first two; return the Axes."""
    ax = ax or new_axes(6.0, 3.6)[1]
    scale = 100 if measure.endswith("exact") else 1
    for place, method in enumerate(methods):
        curves = study.curves(task, method, measure)
        colour, marker, line = LOOKS[method]
        epochs = range(1, len(curves[0]) + 1)
        for curve in curves if place < 2 else []:
            ax.plot(epochs, [scale * value for value in curve], color=colour, linewidth=0.6, alpha=0.35)
        means = [scale * statistics.fmean(values) for values in zip(*curves, strict=True)]
        filled = "white" if method == CONTROL else colour
        ax.plot(
            epochs,
            means,
            line,
            color=colour,
            marker=marker,
            markersize=5,
            markerfacecolor=filled,
            linewidth=2,
            label=LABELS[method],
        )
    ax.set(title=task, xlabel="epoch", ylabel=UNITS[measure], xticks=list(epochs))
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=9)
    return ax


class TournamentExplorer(Explorer):
    """Menus for a method, a task and a measure: the method's curves beside AdamW's.

    Attributes: `method`, `task` and `measure`, the controls.
    """

    hint = "choose another method"

    def __init__(self, study: Tournament):
        self.study = study
        both = [method for method in study.methods(study.tasks[0]) if method != ADAMW]
        both = [method for method in both if all(method in study.methods(task) for task in study.tasks)]
        self.method = ipywidgets.Dropdown(options=[(LABELS[m], m) for m in both], value=F, description="method")
        self.task = ipywidgets.Dropdown(options=study.tasks, description="task")
        self.measure = ipywidgets.Dropdown(
            options=[(UNITS[name], name) for name in (SCORE, LOSS, "train_loss")],
            description="measure",
            layout=ipywidgets.Layout(width="28em"),
        )
        super().__init__([self.method, self.task], self.measure)

    def state(self) -> str:
        return f"{self.task.value}, {self.method.value}"

    def draw(self) -> str:
        task, method, measure = self.task.value, self.method.value, self.measure.value
        scale, unit = (100, " %") if measure.endswith("exact") else (1, "")
        ends = ", ".join(
            f"{LABELS[which]} {scale * statistics.fmean(self.study.ends(task, which, measure)):.3g}{unit}"
            for which in (ADAMW, method)
        )
        rates = " and ".join(f"{self.study.rate(task, which):g}" for which in (ADAMW, method))
        caption = f"{task}, {UNITS[measure]}, after the last epoch: {ends}. Learning rates: {rates}."
        return self.captioned(plot_curves(self.study, task, (ADAMW, method), measure).figure, caption)


def tournament_explorer(study: Tournament) -> TournamentExplorer:
    """Return a `TournamentExplorer`. Raises ValueError when the study has no final runs."""
    if not study.tasks:
        raise ValueError("the study has no final runs yet: python -m ftcourse.studies.masks makes them")
    return TournamentExplorer(study)
