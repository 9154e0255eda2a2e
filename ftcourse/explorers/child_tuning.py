"""Pictures of 02: masks by step, mean update and its standard deviation, held-out loss, and what the studies found."""

import statistics
from collections.abc import Mapping, Sequence

import ipywidgets
import torch

from ftcourse.alternative_text import caption
from ftcourse.intervals import interval
from ftcourse.plots import OKABE_ITO, new_axes
from ftcourse.studies import real_model
from ftcourse.studies.masks import ADAMW, ADVISED_P, CONTROL, F_FEWER, F_MORE, FISHER, LOSS, SCORE, F, Tournament

from . import Explorer

ROWS = {  # of the study's figure: label, colour, marker
    ADAMW: ("AdamW", OKABE_ITO[6], "o"),
    CONTROL: ("control: AdamW at\n√0.3 · F's learning rate", OKABE_ITO[1], "s"),
    F: ("F, p = 0.3", OKABE_ITO[0], "D"),
    FISHER: ("D, p = 0.1", OKABE_ITO[5], "^"),
}
LOOKS = (  # of lines: colour, marker, line
    (OKABE_ITO[6], "o", "-"),
    (OKABE_ITO[0], "D", "-"),
    (OKABE_ITO[1], "s", ":"),
    (OKABE_ITO[2], "v", "--"),
)
BY_P = {0.2: F_FEWER, 0.3: F, 0.5: F_MORE}


def draw_mask(ax, mask: torch.Tensor) -> None:
    """Draw kept entries of a matrix as filled squares and dropped ones hatched."""
    from matplotlib.patches import Rectangle

    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            look = {"facecolor": OKABE_ITO[0], "edgecolor": "white"}
            if not mask[row, column]:
                look = {"facecolor": "white", "edgecolor": "#bbbbbb", "hatch": "////", "linewidth": 0.4}
            ax.add_patch(Rectangle((column, row), 1, 1, **look))
    ax.set(xlim=(0, mask.shape[1]), ylim=(mask.shape[0], 0), xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(False)


def plot_masks(masks: Mapping[str, torch.Tensor]):
    """Draw each mask under its name, side by side; return the Axes."""
    axes = new_axes(1.4 * len(masks), 1.7, columns=len(masks))[1]
    for ax, (name, mask) in zip(axes, masks.items(), strict=True):
        draw_mask(ax, mask)
        ax.set_title(name)
    caption(axes[0], "masks of one matrix, side by side: filled entries train")
    return axes


def plot_updates(updates: Mapping[str, Sequence[float]], *, ax=None):
    """Draw each optimizer's mean update and the standard deviation of updates, both relative; return the Axes."""
    ax = ax or new_axes(5.4, 3.6)[1]
    for (name, (mean, std)), (colour, marker, _) in zip(updates.items(), LOOKS, strict=False):
        x, y = round(float(mean), 2), round(float(std), 2)
        ax.plot(x, y, marker, color=colour, markersize=11)
        ax.annotate(f"{name}\n({x:.2f}, {y:.2f})", (x, y), (10, -14), textcoords="offset points", va="top")
    for value in (0.3**0.5, 1):
        ax.axvline(value, color="#bbbbbb", linewidth=0.8, linestyle=":", zorder=0)
        ax.axhline(value, color="#bbbbbb", linewidth=0.8, linestyle=":", zorder=0)
    ax.set(xlabel="mean update, relative to AdamW at lr", ylabel="its standard deviation, relative")
    ax.set(xlim=(0, 1.3), ylim=(0, 1.2), xticks=(0, 0.25, 0.55, 1), yticks=(0, 0.25, 0.55, 1))
    return ax


def plot_losses(curves: Mapping[str, Sequence[float]], *, ax=None):
    """Draw held-out loss by epoch, one line per optimizer; return the Axes."""
    ax = ax or new_axes(6.6, 3.6)[1]
    for (name, losses), (colour, marker, line) in zip(curves.items(), LOOKS, strict=False):
        epochs = range(1, len(losses) + 1)
        filled = "white" if line == ":" else colour
        ax.plot(epochs, losses, line, color=colour, marker=marker, markerfacecolor=filled, label=name)
    ax.set(xlabel="epoch", ylabel="held-out loss (nats per token)", xticks=list(epochs), ylim=(0, None))
    ax.legend(frameon=False)
    return ax


def new_panels(study: Tournament, height: float):
    """Return (figure, list of Axes): one panel per task of the study, in a row."""
    count = len(study.tasks)
    figure, axes = new_axes(8.8 if count > 1 else 5.2, height, columns=count)
    return figure, [axes] if count == 1 else list(axes)


def plot_study(study: Tournament, measure: str = SCORE):
    """Draw the four rows of `ROWS` for each task: mean over seeds with its 95 % interval, and, in numbers at the right,
    the difference from AdamW over paired seeds. Return the figure.
    """
    figure, axes = new_panels(study, 2.9)
    for ax, task in zip(axes, study.tasks, strict=True):
        for place, (method, (_, colour, marker)) in enumerate(ROWS.items()):
            found = interval([100 * value for value in study.ends(task, method, measure)])
            ax.hlines(place, found.low, found.high, color=colour, linewidth=2.5)
            filled = "white" if method == CONTROL else colour
            ax.plot(found.mean, place, marker, color=colour, markerfacecolor=filled, markersize=9)
            text = "difference from AdamW" if method == ADAMW else study.effect(task, method, measure).points
            ax.annotate(text, (1.03, place), xycoords=("axes fraction", "data"), va="center", fontsize=9)
        ax.set(title=f"{task}, {study.seeds(task)} seeds", xlabel="exact match on the test split (%)")
        ax.set(ylim=(len(ROWS) - 0.5, -0.5), yticks=range(len(ROWS)))
        ax.set_yticklabels([label for label, *_ in ROWS.values()])
        ax.grid(axis="x", color="#dddddd")
        ax.set_axisbelow(True)
    for ax in axes[1:]:
        ax.tick_params(labelleft=False)
    return figure


def plot_study_curves(study: Tournament, methods: Sequence[str] = (ADAMW, F, CONTROL)):
    """Draw the loss on the test split by epoch, each method at its own learning rate: means over seeds, one panel per
    task. Return the figure.
    """
    figure, axes = new_panels(study, 3.2)
    for ax, task in zip(axes, study.tasks, strict=True):
        for method in methods:
            label, colour, marker = ROWS[method]
            means = [statistics.fmean(values) for values in zip(*study.curves(task, method, LOSS), strict=True)]
            look = {"linestyle": ":", "markerfacecolor": "white"} if method == CONTROL else {}
            epochs = range(1, len(means) + 1)
            ax.plot(epochs, means, color=colour, marker=marker, label=label.replace("\n", " "), **look)
        ax.set(title=f"{task}, {study.seeds(task)} seeds", xlabel="epoch", xticks=list(epochs), ylim=(0, None))
    axes[0].set_ylabel("test loss (nats per token)")
    axes[0].legend(frameon=False)
    return figure


REAL_METHODS = (real_model.ADAMW, real_model.FREE, real_model.CONTROL, real_model.FISHER)


def plot_real_study(study: real_model.RealStudy, methods: Sequence[str] = REAL_METHODS):
    """Draw a published model's test loss and exact calls over the steps, each method at its best learning rate: means
    over seeds as lines, seeds as points. Return the Axes."""
    axes = new_axes(9.0, 3.3, columns=2)[1]
    for ax, measure in zip(axes, ("loss", "exact"), strict=True):
        real_model.plot_curves(study, methods, measure, ax=ax)
    axes[1].get_legend().remove()
    return axes


def real_differences(study: real_model.RealStudy, methods: Sequence[str] = REAL_METHODS) -> str:
    """A table: each method's learning rate, and its differences from the first method over paired seeds, in loss after
    the first quarter of the run and in exact calls at the end."""
    first, *others = methods
    lines = [f"{'':18}learning rate   loss after a quarter     exact calls at the end"]
    ends = study.ends(first)
    lines.append(f"{first:18}{study.runs(first)[0]['lr']:13.2g}   {'':22}   {statistics.fmean(ends):.0%}")
    for method in others:
        early, end = study.gain((method,), (first,), "loss", 0), study.gain((method,), (first,))
        lines.append(f"{method:18}{study.runs(method)[0]['lr']:13.2g}   {early.in_own_unit():22}   {end.points} points")
    return "\n".join([*lines, f"differences from {first}, {len(ends)} seeds (95 % interval)"])


def plot_rates(study: Tournament, task: str, p: float, *, ax=None):
    """Draw the validation loss over the learning rate for AdamW and F at `p`, and AdamW's curve moved by 1/√p.

    A ring marks the rate that was chosen, by the validation score. Return the Axes.
    """
    ax = ax or new_axes(6.4, 3.6)[1]
    measure = "validation_loss"
    for method, label, colour, marker in (
        (ADAMW, "AdamW", OKABE_ITO[6], "o"),
        (BY_P[p], f"F, p = {p}", OKABE_ITO[0], "D"),
    ):
        means = {lr: statistics.fmean(values) for lr, values in study.tuning(task, method, measure).items()}
        ax.plot(list(means), list(means.values()), "-", marker=marker, color=colour, label=label)
        chosen = study.rate(task, method)
        ring = {"markersize": 15, "markerfacecolor": "none", "color": colour}
        ax.plot(chosen, means[chosen], "o", label="chosen" if method == ADAMW else None, **ring)
        if method == ADAMW:
            moved = [lr / p**0.5 for lr in means]
            ax.plot(moved, list(means.values()), ":", color=OKABE_ITO[1], label="AdamW's curve, moved by 1/√p")
    ax.set(title=task, xscale="log", xlabel="learning rate", ylabel="validation loss (nats per token)")
    rates = sorted({lr for method in (ADAMW, BY_P[p]) for lr in study.tuning(task, method, measure)})
    ax.set_xticks(rates, [f"{lr:g}" for lr in rates])
    ax.minorticks_off()
    ax.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.45, -0.18), columnspacing=1.2)
    return ax


class LearningRateExplorer(Explorer):
    """A slider for reserve_p and a menu for the task over `plot_rates`.

    Attributes: `slider` (reserve_p) and `task`, the controls.
    """

    def __init__(self, study: Tournament):
        self.study = study
        self.slider = ipywidgets.SelectionSlider(options=list(BY_P), value=0.3, description="reserve_p")
        self.task = ipywidgets.Dropdown(options=study.tasks, description="task")
        super().__init__([self.slider, self.task])

    def state(self) -> str:
        return f"reserve_p={self.slider.value}, {self.task.value}"

    def draw(self) -> str:
        task, p = self.task.value, self.slider.value
        ran = BY_P[p] in self.study.methods(task)
        p = p if ran else ADVISED_P
        plain, masked = (self.study.rate(task, method) for method in (ADAMW, BY_P[p]))
        caption = (
            f"{task}: the best learning rate is {plain:g} for AdamW and {masked:g} for F at {p}, {masked / plain:.1f} "
            f"times as high; 1/√p is {p**-0.5:.1f}."
        ) + ("" if ran else f" The study ran no other p on {task}.")
        return self.captioned(plot_rates(self.study, task, p).figure, caption)


def learning_rate_explorer(study: Tournament) -> LearningRateExplorer:
    """Return a `LearningRateExplorer`. Raises ValueError when the study has no final runs."""
    if not study.tasks:
        raise ValueError("the study has no final runs yet: python -m ftcourse.studies.masks makes them")
    return LearningRateExplorer(study)
