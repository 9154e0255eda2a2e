"""docs/growth.svg: how processor seconds and peak memory grow, each beside the line of linear growth."""

from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, NullLocator

from ftcourse.plots import OKABE_ITO, figure_svg, new_axes

from .report import HEADS, MEASURES, value

TITLE = "Processor seconds, fastest step and peak memory of a fine-tune, relative to the smallest run of each study"
LOOKS = {"processor seconds": ("-", "o"), "fastest step": ("--", "D"), "peak memory": (":", "s")}


def svg(records: list[dict]) -> str:
    """One panel for each study, both axes logarithmic and relative to the smallest run."""
    studies = [study for study in HEADS if study != "rows, again" and sum(r["study"] == study for r in records) > 1]
    figure, panels = new_axes(3.1 * len(studies), 3.0, columns=len(studies))
    for study, ax in zip(studies, panels if len(studies) > 1 else [panels], strict=True):
        found = sorted((r for r in records if r["study"] == study), key=value)
        xs = [value(r) for r in found]
        ax.plot(xs, [x / xs[0] for x in xs], color="#999999", linewidth=1, label="linear")
        for (name, of), colour in zip(MEASURES.items(), OKABE_ITO, strict=False):
            line, marker = LOOKS[name]
            ys = [of(r) / of(found[0]) for r in found]
            ax.plot(xs, ys, color=colour, linestyle=line, marker=marker, markersize=5, label=name)
        ax.set(xscale="log", yscale="log", xlabel=HEADS[study], title=study)
        ax.set_xticks(xs, [f"{x:,}" if x < 10_000 else EngFormatter(places=0)(x) for x in xs], fontsize=8)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 4)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    (panels if len(studies) == 1 else panels[0]).set_ylabel("times the smallest run")
    (panels if len(studies) == 1 else panels[0]).legend(frameon=False, fontsize=8)
    return figure_svg(figure, title=TITLE) + "\n"
