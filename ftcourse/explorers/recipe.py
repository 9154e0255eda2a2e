"""Pictures of the recipe study: validation score over the learning rate, and what each setting is worth."""

import statistics
from collections.abc import Mapping, Sequence

from ftcourse.plots import OKABE_ITO, STYLE, new_axes
from ftcourse.studies.bracketing import SCORE, BracketedStudy

DEFAULTS = {"TRL 2e-5": 2e-5, "Trainer 5e-5": 5e-5}  # SFTConfig and TrainingArguments
MARKERS = ("o", "s", "^")


def plot_learning_rates(
    curve: Mapping[float, Sequence[float]],
    *,
    best: float | None = None,
    defaults: Mapping[str, float] | None = None,
    colour: str = OKABE_ITO[0],
    marker: str = "o",
    ax=None,
):
    """Draw a measure over the learning rate on a log axis; return the Axes.

    Args:
        curve: the values of one or more seeds by learning rate. Small marks are seeds, the line joins their means.
        best: is marked by a diamond, and the range between its two neighbours, the bracket, is shaded.
        defaults: learning rates by label, drawn as dotted vertical lines.
    """
    ax = ax or new_axes(5.0, 3.0)[1]
    rates = sorted(curve)
    means = [statistics.fmean(curve[lr]) for lr in rates]
    for lr in rates:
        ax.plot([lr] * len(curve[lr]), curve[lr], marker, color=colour, markerfacecolor="none", markersize=4, alpha=0.7)
    ax.plot(rates, means, "-", color=colour, linewidth=1.5)
    if best is not None:
        place = rates.index(best)
        ax.axvspan(rates[place - 1], rates[place + 1], color="#bbbbbb", alpha=0.35, linewidth=0)
        ax.plot(best, means[place], "D", color=OKABE_ITO[5], markersize=7)
    for label, lr in (defaults or {}).items():
        ax.axvline(lr, color="#555555", linestyle=":", linewidth=1.2)
        ax.annotate(
            label, (lr, 0.98), xycoords=("data", "axes fraction"), rotation=90, ha="right", va="top", fontsize=8
        )
    ax.set(xscale="log", xlabel="peak learning rate (log scale)")
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    return ax


def plot_question(
    study: BracketedStudy, methods: Mapping[str, Mapping[str, object]], reference: str, *, title: str = ""
):
    """Draw a question as small multiples; return the array of Axes (tasks, labels + 2).

    A row per task: a panel per label with the validation score over the learning rate and the bracket, then two panels
    with the difference of each label from the reference on the test split, each at its own best learning rate: exact
    match in percentage points and loss in nats per token, with the 95 % interval of the paired difference over seeds.

    Args:
        methods: by task, the trials by label.
        reference: the label that the others are compared with.
    """
    import matplotlib
    from matplotlib import pyplot

    labels = list(next(iter(methods.values())))
    widths = [1.0] * len(labels) + [1.15, 1.15]
    with matplotlib.rc_context({**STYLE, "font.size": 9, "axes.titlesize": 9}):
        figure, grid = pyplot.subplots(
            len(methods),
            len(labels) + 2,
            figsize=(1.55 * sum(widths), 2.1 * len(methods)),
            squeeze=False,
            width_ratios=widths,
        )
    for row, (task, trials) in zip(grid, methods.items(), strict=True):
        curves = {label: _percent(study.curve(trial)) for label, trial in trials.items()}
        highest = max(max(map(max, curve.values())) for curve in curves.values())
        rates = [lr for curve in curves.values() for lr in curve]
        for ax, label in zip(row, labels, strict=False):
            ax.set_visible(label in trials)
            if label in trials:
                plot_learning_rates(curves[label], best=study.best(trials[label]), ax=ax)
                wide = max(rates) / min(rates) > 1e3  # AdamW beside SGD: each on its own range
                own = list(curves[label]) if wide else rates
                ax.set(ylim=(-3, 1.1 * highest), xlim=(min(own) / 1.5, max(own) * 1.5), xlabel="", title=label)
            if ax is not row[0]:
                ax.set_yticklabels([])
        row[0].set_ylabel(f"{task}\nvalidation, exact match (%)")
        for ax, measure, scale in ((row[-2], "test_exact", 100), (row[-1], "test_loss", 1)):
            _plot_gains(study, trials, labels, reference, measure, scale, ax)
    for ax in grid[-1][:-2]:
        ax.set_xlabel("learning rate")
    grid[-1][-2].set_xlabel("exact match: difference\n(percentage points)")
    grid[-1][-1].set_xlabel("loss: difference\n(nats per token)")
    if title:
        figure.suptitle(title, fontsize=10)
    return grid


def _plot_gains(study, trials, labels, reference, measure, scale, ax):
    ax.axvline(0, color="#555555", linewidth=1)
    for y, label in enumerate(labels):
        if label == reference:
            ax.plot(0, y, "D", color=OKABE_ITO[5], markersize=5)
        elif label in trials:
            gain = study.gain(trials[label], trials[reference], measure)
            low, high = scale * (gain.mean - gain.low), scale * (gain.high - gain.mean)
            ax.errorbar(
                scale * gain.mean, y, xerr=[[low], [high]], fmt="o", color=OKABE_ITO[0], capsize=3, markersize=5
            )
    ax.set(yticks=range(len(labels)), yticklabels=labels, ylim=(len(labels) - 0.5, -0.5))
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)
    ax.set_title("test, better →" if scale == 100 else "test, ← better")


def _percent(curve: Mapping[float, Sequence[float]]) -> dict[float, list[float]]:
    return {lr: [100 * value for value in values] for lr, values in curve.items()}


def plot_defaults(study: BracketedStudy, trials: Mapping[str, object]):
    """Draw exact match and loss of each task's usual run over the learning rate, with two libraries' defaults."""
    axes = new_axes(9.0, 3.2, columns=2)[1]
    for (task, trial), colour, marker in zip(trials.items(), (OKABE_ITO[0], OKABE_ITO[2]), MARKERS, strict=False):
        for ax, measure in zip(axes, (SCORE, "validation_loss"), strict=True):
            curve = study.curve(trial, measure)
            curve = _percent(curve) if measure == SCORE else curve
            # The bracket belongs to one curve; two shaded ranges would be one blur.
            plot_learning_rates(curve, defaults=DEFAULTS if not ax.texts else None, colour=colour, marker=marker, ax=ax)
            best = study.best(trial)
            ax.plot(best, statistics.fmean(curve[best]), "D", color=OKABE_ITO[5], markersize=7)
            ax.plot([], [], "-", marker=marker, color=colour, markerfacecolor="none", label=task)
    axes[0].set_ylabel("exact match on validation (%)")
    axes[1].set_ylabel("loss on validation (nats per token)")
    axes[1].legend(frameon=False, loc="upper center")
    return axes
