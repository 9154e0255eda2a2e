"""Pictures of a comparison of adapters: learning against forgetting, differences with intervals, and how a matrix
moves; and 4-bit levels over the weights that they stand for."""

import statistics
from collections.abc import Mapping, Sequence

import ipywidgets
import numpy as np

from ftcourse.alternative_text import caption
from ftcourse.intervals import Interval
from ftcourse.plots import OKABE_ITO, new_axes
from ftcourse.studies.adapters import table
from ftcourse.studies.bracketing import BracketedStudy
from ftcourse.studies.real_model import ADAMW, LORA, RealStudy
from ftcourse.studies.trade_off import complete, trial

from . import Explorer

MARKERS = ("o", "s", "D", "^", "v", "P", "X")


def learning_and_forgetting(study: BracketedStudy, method: str) -> dict[float, tuple[float, float]]:
    """By learning rate, lowest first: exact match on validation questions and facts kept, means of the tuning runs."""
    learnt, kept = (study.curve(trial(method), measure) for measure in ("validation_exact", "kept"))
    return {lr: (statistics.fmean(learnt[lr]), statistics.fmean(kept[lr])) for lr in learnt}


def plot_trade_off(study: BracketedStudy, methods: Sequence[str], ax=None):
    """Draw facts kept over questions answered, a line for each method along its learning rates; return the Axes.

    A filled sign is the best learning rate. Up and to the right is better.
    """
    ax = ax or new_axes(6.4, 4.0)[1]
    for number, method in enumerate(methods):
        points = learning_and_forgetting(study, method)
        look = {"color": OKABE_ITO[number % len(OKABE_ITO)], "marker": MARKERS[number % len(MARKERS)]}
        ax.plot(*zip(*points.values(), strict=True), **look, markerfacecolor="white", linewidth=1.2, label=method)
        ax.plot(*points[study.best(trial(method))], **look, linestyle="", markersize=9)
    ax.set(xlabel="learnt: exact match on new questions", ylabel="kept: facts still known", ylim=(0, 1.03))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    ax.locator_params(nbins=7)
    ax.grid(color="#dddddd", linewidth=0.6)
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return caption(
        ax, "facts kept over questions learnt: a line for each method along its learning rates, the best one filled"
    )


class TradeOffExplorer(Explorer):
    """A menu of methods over the curve of learning against forgetting, full fine-tuning's and LoRA's beside it.

    Attributes: `menu`, the control; `points`, what is drawn of the chosen method (see `learning_and_forgetting`).
    """

    hint = "choose another method"

    def __init__(self, study: BracketedStudy, beside: Sequence[str], method: str):
        self.study, self.beside = study, tuple(beside)
        options = [name for name in complete(study) if name not in beside]
        self.menu = ipywidgets.Dropdown(options=options, value=method, description="method")
        super().__init__(self.menu)

    def state(self) -> str:
        return self.menu.value

    def draw(self) -> str:
        method = self.menu.value
        self.points = learning_and_forgetting(self.study, method)
        best = self.study.best(trial(method))
        learnt, kept = self.points[best]
        caption = (
            f"{method}: at its best learning rate, {best:g}, {learnt:.0%} of the validation questions answered and "
            f"{kept:.0%} of the facts kept."
        )
        ax = plot_trade_off(self.study, [*self.beside, method])
        return self.captioned(ax.figure, caption, "Learning against forgetting.")


def results(study: BracketedStudy, methods: Sequence[str]) -> str:
    """A table for printing: best learning rate, test scores and facts kept, means over the final seeds."""
    wide = max(map(len, methods))
    lines = [f"{'':{wide}} learning   exact   loss  facts\n{'method':{wide}}     rate   match  nats   kept"]
    for method in methods:
        exact, loss, kept = (
            statistics.fmean(study.ends(trial(method), m)) for m in ("test_exact", "test_loss", "kept")
        )
        lines.append(f"{method:{wide}} {study.best(trial(method)):8.2g} {exact:6.0%} {loss:6.2f} {kept:6.0%}")
    return "\n".join(lines)


GAINS = {  # measure: title, factor, unit
    "test_exact": ("exact match →", 100, "percentage points"),
    "test_loss": ("← loss", 1, "nats per token"),
    "kept": ("facts kept →", 100, "percentage points"),
}


def plot_gains(study: BracketedStudy, methods: Sequence[str], reference: str):
    """Draw how much each method differs from a reference, by seed: means and 95 % intervals, a panel per measure;
    return the Axes. The arrow in a title says where better is."""
    _, axes = new_axes(9.0, 0.9 + 0.32 * len(methods), columns=len(GAINS))
    for ax, (measure, (title, factor, unit)) in zip(axes, GAINS.items(), strict=True):
        ax.axvline(0, color="#555555", linewidth=1)
        for y, method in enumerate(methods):
            gain = study.gain(trial(method), trial(reference), measure)
            ends = [[factor * (gain.mean - gain.low)], [factor * (gain.high - gain.mean)]]
            ax.errorbar(factor * gain.mean, y, xerr=ends, fmt="o", color=OKABE_ITO[0], capsize=3, markersize=5)
        ax.set_yticks(range(len(methods)), methods if ax is axes[0] else [""] * len(methods))
        ax.set(ylim=(len(methods) - 0.5, -0.5), title=title, xlabel=unit)
        ax.grid(axis="x", color="#dddddd", linewidth=0.6)
        ax.locator_params(axis="x", nbins=5)
    caption(axes[0], f"by how much each method differs from {reference}, means over seeds with 95 % intervals")
    return axes


def in_units(gain: Interval, measure: str) -> str:
    """A difference with its interval: percentage points, or nats per token for a loss."""
    return gain.points if GAINS[measure][1] == 100 else gain.in_own_unit()


def plot_movement(panels: Mapping[str, Sequence[Sequence[tuple[float, float]]]], notes: Mapping[str, str] = {}):
    """Draw one panel per method, on equal log scales: each matrix a point at its ΔD and ΔM; return the Axes.

    `panels` maps a title to the points of each seed, which has a sign of its own; `notes` are written under the titles.
    """
    axes = np.atleast_1d(new_axes(3 * len(panels), 2.8, columns=len(panels))[1])
    everything = [point for seeds in panels.values() for points in seeds for point in points]
    limits = [(min(values) / 1.3, 1.3 * max(values)) for values in zip(*everything, strict=True)]
    for ax, (title, seeds) in zip(axes, panels.items(), strict=True):
        for sign, colour, points in zip(MARKERS, OKABE_ITO, seeds, strict=False):
            ax.plot(*zip(*points, strict=True), sign, markersize=4, alpha=0.7, color=colour)
        ax.set_title(f"{title}\n{notes[title]}" if title in notes else title, fontsize=10)
        ax.set(xscale="log", yscale="log", xlim=limits[0], ylim=limits[1], xlabel="ΔD: mean of 1 - cosine")
        if ax is not axes[0]:
            ax.set_yticklabels([])
    axes[0].set_ylabel("ΔM: mean change of length")
    caption(
        axes[0], "a point for each matrix of the model: how far its columns turned and how much their lengths changed"
    )
    return axes


def plot_levels(weights, levels: Mapping[str, Sequence[float]]):
    """Draw the histogram of scaled weights, between -1 and 1, with a line at each level; return the Axes."""
    axes = np.atleast_1d(new_axes(4.4 * len(levels), 2.5, columns=len(levels))[1])
    for ax, (name, values) in zip(axes, levels.items(), strict=True):
        counts, edges = np.histogram(np.asarray(weights), bins=64, range=(-1, 1))
        ax.stairs(counts, edges, fill=True, color=OKABE_ITO[4], alpha=0.6)
        for value in values:
            ax.axvline(float(value), color=OKABE_ITO[5], linewidth=0.9, linestyle="--")
        ax.set(title=f"{name}: {len(values)} levels", xlabel="weight / largest of its block", yticks=[])
    axes[0].set_ylabel("weights")
    caption(axes[0], "histogram of the weights, with a line at each level that 4 bits can store")
    return axes


def costs(records: Sequence[dict], tasks: Sequence[str], rows: Sequence[str], reference: str) -> str:
    """A table for printing: what trains, its size on disk, and a step's processor time beside a reference's.

    `records` are those of `ftcourse.studies.adapters`. The time is the median over tasks and seeds.
    """
    wide = max(map(len, rows))
    lines = [
        f"{'':{wide}}     trainable      stored   step time /",
        f"{'method':{wide}}    parameters     (bytes)   {reference}'s",
    ]
    for row in rows:
        run = table.final_runs(records, tasks[0], row)[0]
        times = [ratio for task in tasks for ratio in table.ratios(records, task, row, reference, "step_ms")]
        lines.append(f"{row:{wide}} {run['trainable']:13,} {run['adapter_bytes']:11,} {statistics.median(times):9.1f}")
    return "\n".join(lines)


def searched(study: RealStudy) -> list[str]:
    """Full fine-tuning and LoRA, as far as their best learning rates are bracketed in the real model's study."""
    found = []
    for method in (ADAMW, LORA):
        try:
            study.best_rate(method)
        except ValueError:  # the search is not over
            continue
        found.append(method)
    return found


def real_results(study: RealStudy) -> str:
    """A line per method of `searched`: best learning rate, exact calls on validation requests, and on test requests
    the mean of the final seeds where these were run."""
    lines = []
    for method in searched(study):
        best = study.best_rate(method)
        line = (
            f"{method}: best learning rate {best:g}, {study.tuning(method, 'exact')[best]:.0%} of the validation calls"
        )
        try:
            ends = study.ends(method)
            line += f", {statistics.fmean(ends):.0%} of the test calls ({len(ends)} seeds)"
        except ValueError:
            line += "; no final runs yet"
        lines.append(line)
    return "\n".join(lines)
