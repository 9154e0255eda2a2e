"""Pictures and tables of the recipe study: validation score over the learning rate, and what each setting is worth."""

import statistics
from collections.abc import Mapping, Sequence

from ftcourse.alternative_text import caption
from ftcourse.plots import OKABE_ITO, STYLE, new_axes
from ftcourse.studies import real_model
from ftcourse.studies.bracketing import SCORE, BracketedStudy, method_of
from ftcourse.studies.real_model import RealStudy, short
from ftcourse.studies.recipe import EPOCHS, QUESTIONS, Trial, usual, variants

DEFAULTS = {f"{name} {short(lr)}": lr for lr, name in sorted(real_model.DEFAULTS.items())}
COLOURS, MARKERS = (OKABE_ITO[0], OKABE_ITO[2]), ("o", "s")
SAY_ENOUGH = ("schedule", "optimizer")  # questions whose labels need no name before them
BEST = {"marker": "D", "color": OKABE_ITO[5]}


def plot_learning_rates(
    curve: Mapping[float, Sequence[float]],
    *,
    best: float | None = None,
    bracket: bool = True,
    colour: str = OKABE_ITO[0],
    marker: str = "o",
    ax=None,
):
    """Draw a measure over the learning rate on a log axis; return the Axes.

    Args:
        curve: the values of one or more seeds by learning rate. Open marks are seeds, the line joins their means.
        best: is marked by a diamond; with `bracket` the range between its two neighbours is shaded.
    """
    from matplotlib.ticker import NullFormatter

    ax = ax or new_axes(5.0, 3.0)[1]
    rates = sorted(curve)
    means = [statistics.fmean(curve[lr]) for lr in rates]
    for lr in rates:
        ax.plot([lr] * len(curve[lr]), curve[lr], marker, color=colour, markerfacecolor="none", markersize=4)
    ax.plot(rates, means, "-", color=colour, linewidth=1.5)
    if best is not None:
        place = rates.index(best)
        if bracket:
            ax.axvspan(rates[place - 1], rates[place + 1], color="#bbbbbb", alpha=0.35, linewidth=0)
        ax.plot(best, means[place], **BEST, markersize=6)
    ax.set(xscale="log", xlabel="peak learning rate")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="y", color="#dddddd", linewidth=0.6)
    return ax


def plot_defaults(study: BracketedStudy):
    """Draw exact match and loss of each task's usual run over the learning rate, with two libraries' defaults."""
    axes = new_axes(9.0, 3.2, columns=2)[1]
    for ax, measure, label in zip(
        axes, (SCORE, "validation_loss"), ("exact match (%)", "loss (nats per token)"), strict=True
    ):
        for task, colour, marker in zip(tasks_of(study, "learning rate"), COLOURS, MARKERS, strict=False):
            trial = usual(task)
            curve = _scaled(study.curve(trial, measure), 100 if measure == SCORE else 1)
            plot_learning_rates(curve, best=study.best(trial), bracket=False, colour=colour, marker=marker, ax=ax)
            ax.plot([], [], "-", marker=marker, color=colour, markerfacecolor="none", label=task)
        for name, lr in DEFAULTS.items():
            ax.axvline(lr, color="#555555", linestyle=":", linewidth=1.2)
            side = "right" if lr == min(DEFAULTS.values()) else "left"  # above the axes, apart from each other
            ax.annotate(name, (lr, 1), xycoords=("data", "axes fraction"), ha=side, va="bottom", fontsize=8)
        ax.set_ylabel(f"validation, {label}")
    axes[1].legend(frameon=False, loc="upper right")
    caption(
        axes[0], "validation scores over the learning rate, with the defaults of two libraries far below the best one"
    )
    return axes


def tasks_of(study: BracketedStudy, question: str) -> list[str]:
    """The tasks that the question was answered on. Raises ValueError where there is none."""
    alternatives = question != "learning rate"  # which has the usual run alone
    done = set(study.methods)
    methods = {task: {method_of(trial) for trial in variants(task, question).values()} for task in EPOCHS}
    tasks = [task for task, wanted in methods.items() if wanted <= done and (len(wanted) > 1 or not alternatives)]
    if not tasks:
        raise ValueError(f"no task has all runs of {question!r}: python -m ftcourse.studies.recipe makes them")
    return tasks


def plot_question(study: BracketedStudy, question: str):
    """Draw a question of the study as small multiples; return the array of Axes, a row per task.

    A panel per setting shows the validation score over the learning rate, the best rate (diamond) and its bracket
    (shaded). The last two show what each setting gains on the test questions over the usual one, each at its own best
    learning rate: the mean difference over the seeds and its 95 % interval, in exact match and in loss.
    """
    import matplotlib
    from matplotlib import pyplot

    methods = {task: variants(task, question) for task in tasks_of(study, question)}
    columns = max(map(len, methods.values()))
    widths = [1.0] * columns + [1.2, 1.2]
    with matplotlib.rc_context({**STYLE, "font.size": 9, "axes.titlesize": 9}):
        size = (min(1.5 * sum(widths), 8.6), 2.0 * len(methods))
        _, grid = pyplot.subplots(len(methods), columns + 2, figsize=size, squeeze=False, width_ratios=widths)
        for row, (task, trials) in zip(grid, methods.items(), strict=True):
            _plot_curves(study, trials, question, row[:columns])
            row[0].set_ylabel(f"{task}, validation\nexact match (%)")
            for ax, measure in ((row[-2], "test_exact"), (row[-1], "test_loss")):
                _plot_gains(study, trials, usual(task), measure, ax)
        for column in (-2, -1):  # the same scale for every task
            limits = [ax.get_xlim() for ax in grid[:, column]]
            for ax in grid[:, column]:
                ax.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
        for ax in grid[-1][:columns]:
            ax.set_xlabel("learning rate")
        grid[-1][-2].set_xlabel("percentage points")
        grid[-1][-1].set_xlabel("nats per token")
    about = (
        f"{question}: for each setting, a row for each data set, the validation score over the learning rate, with the "
        "best one marked; at the right, by how much each setting differs from the usual one on test questions"
    )
    caption(grid[0][0], about)
    return grid


def _plot_curves(study, trials, question, axes):
    curves = {label: _scaled(study.curve(trial), 100) for label, trial in trials.items()}
    highest = max(max(values) for curve in curves.values() for values in curve.values())
    adamw = [lr for label, curve in curves.items() for lr in curve if trials[label].optimizer == "adamw"]
    for ax in axes[len(curves) :]:
        ax.set_visible(False)
    for ax, (label, curve) in zip(axes, curves.items(), strict=False):
        plot_learning_rates(curve, best=study.best(trials[label]), ax=ax)
        shown = adamw if trials[label].optimizer == "adamw" else list(curve)
        title = label if question in SAY_ENOUGH else f"{question} {label}"
        ax.set(ylim=(-0.04 * highest, 1.1 * highest), xlim=(min(shown) / 1.6, max(shown) * 1.6), xlabel="", title=title)
        if min(shown) < 1e-3:
            ax.set_xticks([lr for lr in (1e-5, 1e-3) if ax.get_xlim()[0] < lr])
        if ax is not axes[0]:
            ax.set_yticklabels([])


def _plot_gains(study, trials, reference, measure, ax):
    scale = 100 if measure == "test_exact" else 1
    ax.axvline(0, color="#555555", linewidth=1)
    for y, trial in enumerate(trials.values()):
        if trial == reference:
            ax.plot(0, y, **BEST, markersize=5)
            continue
        gain = study.gain(trial, reference, measure)
        ends = [[scale * (gain.mean - gain.low)], [scale * (gain.high - gain.mean)]]
        ax.errorbar(scale * gain.mean, y, xerr=ends, fmt="o", color=OKABE_ITO[0], capsize=3, markersize=5)
    ax.set(yticks=range(len(trials)), yticklabels=list(trials), ylim=(len(trials) - 0.5, -0.5))
    ax.set_title("test exact match ↑" if scale == 100 else "test loss ↓")  # the better direction
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)


def effects(study: BracketedStudy, question: str) -> str:
    """A table for printing: best learning rate, test scores, and differences from the usual run with 95 % intervals.

    The scores are means over the seeds that all settings of the task have; their number is printed.
    """
    tasks = {task: variants(task, question) for task in tasks_of(study, question)}
    wide = max(map(len, [question, *(label for trials in tasks.values() for label in trials)]))
    lines = [f"{'':8} {'':{wide}} learning        exact        difference from the usual run, 95 % interval"]
    lines += [f"{'task':8} {question:{wide}}     rate  seeds  match  loss  percentage points       nats per token"]
    for task, trials in tasks.items():
        exacts, losses = (common_means(study, trials, f"test_{m}") for m in ("exact", "loss"))
        seeds = len(_common_seeds(study, trials))
        for label, trial in trials.items():
            best = study.best(trial)
            line = f"{task:8} {label:{wide}} {best:8.2g} {seeds:6} {exacts[label]:6.0%} {losses[label]:5.2f}"
            if trial != usual(task):
                gains = (study.gain(trial, usual(task), f"test_{m}") for m in ("exact", "loss"))
                line += f"  {next(gains).points:22}  {next(gains).in_own_unit()}"
            lines.append(line)
    return "\n".join(lines)


def _common_seeds(study: BracketedStudy, trials: Mapping[str, Trial]) -> list[int]:
    return sorted(set.intersection(*(set(study.runs(trial)) for trial in trials.values())))


def common_means(study: BracketedStudy, trials: Mapping[str, Trial], measure: str) -> dict[str, float]:
    """The mean of a test measure by label, over the seeds that all the trials ran."""
    runs, seeds = {label: study.runs(trial) for label, trial in trials.items()}, _common_seeds(study, trials)
    return {label: statistics.fmean(found[seed][measure] for seed in seeds) for label, found in runs.items()}


def _scaled(curve: Mapping[float, Sequence[float]], factor: float) -> dict[float, list[float]]:
    return {lr: [factor * value for value in values] for lr, values in curve.items()}


def plot_real_learning_rates(study: RealStudy):
    """Draw the learning rate curves of SmolLM2-135M's study, exact calls and loss; return the Axes."""
    axes = new_axes(9.0, 3.2, columns=2)[1]
    for ax, measure in zip(axes, ("exact", "loss"), strict=True):
        real_model.plot_learning_rates(study, _searched(study), measure, ax=ax)
    return axes


def real_learning_rates(study: RealStudy) -> str:
    """What `plot_real_learning_rates` shows, a line for each method: exact calls by learning rate, and the best; then
    AdamW's final runs at its best and at both libraries' defaults."""
    lines = [
        f"{method}: {', '.join(f'{lr:g} {exact:.0%}' for lr, exact in study.tuning(method, 'exact').items())}; "
        f"best {study.best_rate(method):g}"
        for method in _searched(study)
    ]
    return "\n".join([*lines, *_defaults(study)])


def _defaults(study: RealStudy) -> list[str]:
    best = study.ends(real_model.ADAMW)
    lines = [f"test, {len(best)} seeds, best {study.best_rate(real_model.ADAMW):g}: {statistics.fmean(best):.0%}"]
    for name, lr in DEFAULTS.items():
        gain = study.gain((real_model.ADAMW,), (real_model.ADAMW, lr))
        mean = statistics.fmean(study.ends(real_model.ADAMW, lr=lr))
        lines.append(f"  {name}: {mean:.0%}; the best is ahead by {gain.points} percentage points")
    return lines


def _searched(study: RealStudy) -> list[str]:
    return [method for method in (real_model.ADAMW, real_model.LORA) if method in study.tuned()]


def worth(study: BracketedStudy, task: str) -> dict[str, float]:
    """How much each setting can cost, in nats of loss: the worst of its variants against the best, largest first.

    Each variant has its own best learning rate and is tested over the final seeds. For the learning rate itself it is
    the mean cost of a factor of 3 up or down, on the tuning seeds' validation loss.
    """
    curve = {lr: statistics.fmean(values) for lr, values in study.curve(usual(task), "validation_loss").items()}
    rates, best = list(curve), study.best(usual(task))
    sides = [curve[rates[rates.index(best) + step]] for step in (-1, 1)]
    found = {"learning rate, 3× off": statistics.fmean(sides) - curve[best]}
    for question in QUESTIONS:
        if question != "learning rate" and task in tasks_of(study, question):
            losses = common_means(study, variants(task, question), "test_loss").values()
            found[question] = max(losses) - min(losses)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def plot_worth(costs: Mapping[str, Mapping[str, float]]):
    """Draw `worth` of each task as bars, settings in the first task's order; return the Axes."""
    axes = new_axes(9.0, 2.8, columns=len(costs))[1]
    order = list(next(iter(costs.values())))
    for ax, (task, found) in zip(axes, costs.items(), strict=True):
        places = [place for place, name in enumerate(order) if name in found]
        bars = ax.barh(places, [found[order[place]] for place in places], color=COLOURS[0], height=0.6)
        ax.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        ax.set(yticks=range(len(order)), yticklabels=order, ylim=(len(order) - 0.5, -0.5), title=task)
        ax.set_xlabel("loss: worst minus best (nats per token)")
        ax.set_xlim(0, 1.15 * max(max(found.values()) for found in costs.values()))  # bars compare across tasks
    for ax in axes[1:]:
        ax.set_yticklabels([])
    return axes
