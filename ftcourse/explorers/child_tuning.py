"""Pictures of the child-tuning study: final scores with intervals, and curves by epoch under a slider."""

import statistics

import ipywidgets

from ftcourse.intervals import interval
from ftcourse.plots import OKABE_ITO, new_axes
from ftcourse.studies.child_tuning import ADAMW, ADVISED_P, CONTROL, DEPENDENT, DEPENDENT_P, FREE, FREE_P, SCORE, Study

from . import Explorer

LOOKS = {  # colour, marker, line
    ADAMW: (OKABE_ITO[6], "o", "-"),
    CONTROL: (OKABE_ITO[1], "s", ":"),
    FREE: (OKABE_ITO[0], "D", "-"),
    DEPENDENT: (OKABE_ITO[5], "^", "--"),
}
UNITS = {
    "test_exact": "right on held-out questions (%)",
    "heldout_domains_exact": "right in held-out domains (%)",
    "test_loss": "loss on held-out questions (nats)",
    "heldout_domains_loss": "loss in held-out domains (nats)",
    "train_loss": "training loss (nats)",
}


def plot_scores(study: Study, task: str, measure: str = SCORE, *, ax=None):
    """Final score of every method on one task, with its 95 % interval over seeds; return the Axes."""
    rows = [(ADAMW, 1.0, "AdamW")]
    for p in FREE_P:
        rows += [(FREE, p, f"F, p = {p}"), (CONTROL, p, f"AdamW at √{p} × F's rate")]
    rows += [(DEPENDENT, p, f"D, p = {p}") for p in DEPENDENT_P]
    ax = ax or new_axes(6.0, 4.4)[1]
    for place, (method, p, _) in enumerate(rows):
        found, (colour, marker, _) = interval(study.ends(task, method, p, measure)), LOOKS[method]
        ax.hlines(place, 100 * found.low, 100 * found.high, color=colour, linewidth=2)
        filled = "white" if method == CONTROL else colour
        ax.plot(100 * found.mean, place, marker, color=colour, markerfacecolor=filled, markersize=8)
    plain = interval(study.ends(task, ADAMW, 1.0, measure))
    ax.axvspan(100 * plain.low, 100 * plain.high, color="#dddddd", alpha=0.5, zorder=0)
    ax.set(title=task, xlabel=UNITS[measure], yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.5))
    ax.set_yticklabels([label for *_, label in rows])
    ax.grid(axis="x", color="#dddddd")
    ax.set_axisbelow(True)
    return ax


def plot_curves(study: Study, task: str, p: float, measure: str = SCORE, *, ax=None):
    """AdamW, F at `p`, F's control and D by epoch: means over seeds, and one line for each of F's and AdamW's.

    Return the Axes.
    """
    ax = ax or new_axes(6.0, 3.6)[1]
    dependent = study.best_dependent(task)
    scale = 100 if measure.endswith("exact") else 1
    shown = [((ADAMW, 1.0), "AdamW"), ((FREE, p), f"F, p = {p}")]
    shown += [((CONTROL, p), f"AdamW at √{p} × F's rate"), (dependent, f"D, p = {dependent[1]}")]
    for (method, share), label in shown:
        curves = study.curves(task, method, share, measure)
        colour, marker, line = LOOKS[method]
        epochs = range(1, len(curves[0]) + 1)
        for curve in curves if method in (ADAMW, FREE) else []:
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
            label=label,
        )
    ax.set(title=task, xlabel="epoch", ylabel=UNITS[measure], xticks=list(epochs))
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    return ax


class SweepExplorer(Explorer):
    """Sliders and menus for reserve_p, task and measure over `plot_curves`.

    Attributes: `slider` (reserve_p), `task` and `measure`, the controls.
    """

    def __init__(self, study: Study):
        self.study = study
        self.slider = ipywidgets.SelectionSlider(options=FREE_P, value=ADVISED_P, description="reserve_p")
        self.task = ipywidgets.Dropdown(options=study.tasks, description="task")
        self.measure = ipywidgets.Dropdown(
            options=[(UNITS[name], name) for name in (SCORE, "test_loss", "train_loss")],
            description="measure",
            layout=ipywidgets.Layout(width="28em"),
        )
        super().__init__([self.slider, self.task], self.measure)

    def state(self) -> str:
        return f"{self.task.value}, reserve_p={self.slider.value}"

    def draw(self) -> str:
        task, p, measure = self.task.value, self.slider.value, self.measure.value
        scale, unit = (100, " %") if measure.endswith("exact") else (1, "")
        means = {
            label: scale * statistics.fmean(self.study.ends(task, method, share, measure))
            for label, method, share in (
                ("AdamW", ADAMW, 1.0),
                (f"F at {p}", FREE, p),
                ("its control", CONTROL, p),
            )
        }
        rate = self.study.rate(task, FREE, p)
        ends = ", ".join(f"{label} {value:.3g}{unit}" for label, value in means.items())
        caption = f"{task}, {UNITS[measure]}, after the last epoch: {ends}. F's rate is {rate:g}."
        return self.captioned(plot_curves(self.study, task, p, measure).figure, caption)


def sweep_explorer(study: Study) -> SweepExplorer:
    """Return a `SweepExplorer`. Raises ValueError when the study has no final runs."""
    if not study.tasks:
        raise ValueError("the study has no final runs yet: python -m ftcourse.studies.child_tuning makes them")
    return SweepExplorer(study)
