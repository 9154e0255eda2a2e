"""Pictures of the course: each function draws on one Axes and returns it; none of them computes or prints.

Colours are viridis and the Okabe-Ito palette, which survive colour blindness and a grey print; what they say
is said again by a number, a hatch, a marker or a label. Matplotlib loads when the first picture is drawn, so
`import ftcourse.plots` needs no display. Pictures are SVG with real text and an alternative text, on a white card in
light and dark pages alike, and their bytes depend on nothing but what is drawn.
"""

import functools
import io
from collections.abc import Mapping, Sequence

from ._extras import require
from .alternative_text import describe
from .svg import picture_html, tidy_svg

require("matplotlib")

# Okabe and Ito, "Color Universal Design" (2008), without its yellow, which is pale on white.
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
HATCHES = ("", "//", "--", "xx", "\\\\", "||", "++")

STYLE = {
    "svg.fonttype": "none",  # words are text, which can be found, copied, read aloud and shown sharp
    "figure.constrained_layout.use": True,  # no label is cut off
    "figure.dpi": 72,
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
}


def _in_course_style(draw):
    """Let `draw` look alike whatever style the process has: titles and hatches take theirs when they are made."""

    @functools.wraps(draw)
    def drawn(*args, **kwargs):
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def use_course_style() -> None:
    """Set matplotlib's style for this process and, inside a notebook, show each figure by `picture_html`."""
    import matplotlib

    matplotlib.rcParams.update(STYLE)
    try:
        from IPython import get_ipython
    except ImportError:  # a plain script: there is no front end to configure
        return
    shell = get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return
    shell.run_line_magic("matplotlib", "inline")  # activate it now: on activation it resets formats and style
    from matplotlib.figure import Figure
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats()  # none of its own
    formatters = shell.display_formatter.formatters
    formatters["text/html"].for_type(Figure, lambda figure: picture_html(_svg(figure)) if figure.axes else None)
    formatters["text/plain"].for_type(Figure, lambda figure, printer, cycle: printer.text(describe(figure)))
    matplotlib.rcParams.update(STYLE)


def figure_svg(figure, *, title: str | None = None) -> str:
    """Return `figure` as an `<svg>` element whose text depends only on what is drawn, and close the figure.

    `title` is the element's accessible name (`role="img"` and `aria-label`); by default it is made from what is drawn.
    """
    from matplotlib import pyplot

    svg = _svg(figure, title)
    pyplot.close(figure)
    return svg


def _svg(figure, title: str | None = None) -> str:
    import matplotlib
    from matplotlib.colors import to_hex

    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        # The figure's own background is a rectangle; tidy_svg puts a card in its place.
        figure.savefig(buffer, format="svg", bbox_inches="tight", facecolor="none", edgecolor="none")
    return tidy_svg(buffer.getvalue(), describe(figure) if title is None else title, to_hex(figure.get_facecolor()))


@_in_course_style
def new_axes(width: float = 6.0, height: float = 3.2, columns: int = 1):
    """Return (figure, axes) in the course's style: `width` × `height` inches, one row of `columns` Axes."""
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=(width, height))


@_in_course_style
def plot_matrix(values, *, title: str, mask=None, limit: float | None = None, ax=None):
    """Draw a matrix as a heat map with its numbers written in the cells; return the Axes.

    values: (rows, columns) tensor, array or nested list; booleans are written as 1 and 0.
    mask: same shape, True where an entry is kept; the others are hatched and lose their number.
    limit: the colours span [-limit, limit]; default the largest absolute value. Give one to compare matrices.
    Raises ValueError if `values` is not a matrix or `mask` has another shape.
    """
    import numpy as np
    from matplotlib.patches import Rectangle

    values = _as_array(values)
    if values.ndim != 2:
        raise ValueError(f"a matrix has two dimensions, and this has {values.ndim}: reshape it first")
    mask = np.ones(values.shape, bool) if mask is None else _as_array(mask).astype(bool)
    if mask.shape != values.shape:
        raise ValueError(f"mask has shape {mask.shape}, values {values.shape}: they must agree")
    finite = np.abs(values[np.isfinite(values)].astype(float))
    limit = limit or (finite.max() if finite.size and finite.max() > 0 else 1.0)
    low, high = (0, 1) if values.dtype == bool else (-limit, limit)
    rows, columns = values.shape
    ax = ax or new_axes(1.0 + 0.7 * columns, 0.8 + 0.55 * rows)[1]
    # White lines between the cells also hide the seams that viewers leave between filled paths.
    look = {"cmap": "viridis", "vmin": low, "vmax": high, "edgecolors": "white", "linewidth": 1}
    cells = ax.pcolormesh(values.astype(float), **look)
    for (row, column), value in np.ndenumerate(values):
        if not mask[row, column]:
            style = {"facecolor": "white", "edgecolor": "#777777", "hatch": "///", "linewidth": 0}
            ax.add_patch(Rectangle((column, row), 1, 1, **style))
            continue
        red, green, blue, _ = cells.to_rgba(float(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        label = str(int(value)) if values.dtype == bool else f"{value:.2f}"
        ax.text(column + 0.5, row + 0.5, label, ha="center", va="center", color="white" if dark else "black")
    ax.set(title=title, xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(False)
    return ax


@_in_course_style
def plot_loss(metrics: Sequence[Mapping], *, ax=None):
    """Draw training loss, and evaluation loss where there is one, over optimizer steps; return the Axes.

    metrics: dicts with `step` and `loss` or `eval_loss` (nats per token), as in `metrics.jsonl` or Trainer's
    `log_history`; rows without either are passed over.
    Raises ValueError if none of them has a loss.
    """
    ax = ax or new_axes()[1]
    looks = {
        "loss": ("training", {"color": OKABE_ITO[0], "linestyle": "-"}),
        "eval_loss": ("evaluation", {"color": OKABE_ITO[5], "linestyle": "--", "marker": "o"}),
    }
    for key, (label, look) in looks.items():
        points = [(row["step"], row[key]) for row in metrics if row.get(key) is not None]
        if points:
            ax.plot(*zip(*points, strict=True), label=label, **look)
    if not ax.lines:
        raise ValueError("no row has 'loss' or 'eval_loss': was anything logged?")
    ax.set(xlabel="optimizer step", ylabel="loss (nats per token)", ylim=(0, None))
    ax.legend(frameon=False)
    return ax


@_in_course_style
def plot_by_domain(before: Mapping, after: Mapping, *, labels: tuple[str, str], ylabel: str, ax=None):
    """Draw one row per domain from its value before (circle) to after (diamond), greatest fall on top.

    before, after: domain -> value; labels: names of the two; ylabel: what the value is, with its unit.
    Raises ValueError if the two do not name the same domains.
    """
    if set(before) != set(after):
        raise ValueError(f"only one side has {sorted(set(before) ^ set(after))}: give both the same domains")
    domains = sorted(before, key=lambda domain: (after[domain] - before[domain], domain))
    ax = ax or new_axes(height=1.1 + 0.3 * len(domains))[1]
    rows = range(len(domains))
    old, new = [before[d] for d in domains], [after[d] for d in domains]
    ax.hlines(rows, old, new, color="#999999", linewidth=2)
    ax.plot(old, rows, "o", markersize=9, color=OKABE_ITO[0], markerfacecolor="white", label=labels[0])
    ax.plot(new, rows, "D", markersize=6, color=OKABE_ITO[5], label=labels[1])
    for row, was, now in zip(rows, old, new, strict=True):
        ax.annotate(f"{was:.2f} → {now:.2f}", (1.02, row), xycoords=("axes fraction", "data"), va="center")
    ax.set(xlabel=ylabel, yticks=list(rows), yticklabels=domains, ylim=(len(domains) - 0.5, -0.5))
    ax.grid(axis="x", color="#dddddd")
    ax.set_axisbelow(True)
    ax.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    return ax


@_in_course_style
def plot_shards(rows_per_rank: Sequence[int], *, columns: int, title: str, ax=None):
    """Draw which rows of a matrix live on which rank, as blocks from top to bottom; return the Axes.

    rows_per_rank: rows that rank 0, 1, … holds (a rank may hold none); columns: the matrix's width.
    """
    from matplotlib.patches import Rectangle

    ax = ax or new_axes(5.0, 0.8 + 0.42 * len(rows_per_rank))[1]
    first = 0
    for rank, rows in enumerate(rows_per_rank):
        if rows == 0:
            continue
        look = {"facecolor": OKABE_ITO[rank % len(OKABE_ITO)], "hatch": HATCHES[rank % len(HATCHES)]}
        ax.add_patch(Rectangle((0, first), 1, rows, alpha=0.35, edgecolor="black", **look))
        label = f"rank {rank}: rows {first} to {first + rows - 1} ({rows} × {columns})"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 2}
        ax.text(0.5, first + rows / 2, label, ha="center", va="center", bbox=box)
        first += rows
    empty = [rank for rank, rows in enumerate(rows_per_rank) if rows == 0]
    ax.set(title=title, xlim=(0, 1), ylim=(first, 0), xticks=[], ylabel="row")
    ax.set_xlabel(f"no rows: rank {', '.join(map(str, empty))}" if empty else "")
    return ax


def _as_array(values):
    """Return a numpy array of a tensor on any device and dtype, an array or a nested list."""
    import numpy as np

    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.is_floating_point():  # numpy has no bfloat16
            values = values.float()
    return np.asarray(values)
