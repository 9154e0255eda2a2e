"""What a picture says, in words, for readers who cannot see it: made from the drawn figure itself.

Titles, axes and their ranges, what is plotted with where it begins and ends, and the words in the picture. A plot
function that knows more puts a sentence before that with `caption`.
"""

import math
import re
from collections.abc import Callable, Iterable

LIMIT = 700  # characters of a text
STEPS = 500  # that can be told apart along an axis
WORDS = 16  # of the words in a picture, and of the bars or points whose values are said
CAPTION = "ftkit caption"  # under this name a figure carries it


def caption(drawn, text: str):
    """Let the alternative text of a figure, or of the figure of an Axes, begin with `text`; returns what was given."""
    figure = drawn if hasattr(drawn, "axes") and isinstance(drawn.axes, list) else drawn.figure
    figure.set_label(text)
    return drawn


def describe(figure) -> str:
    """The alternative text of a matplotlib figure: sentences in one line, of at most LIMIT characters."""
    panels = [ax for ax in figure.axes if ax.get_visible() and ax.get_label() != "<colorbar>"]
    bars = [ax for ax in figure.axes if ax.get_label() == "<colorbar>"]
    parts = [figure.get_label(), figure.get_suptitle()]
    described = [_describe_axes(ax) for ax in panels]
    if len(panels) > 1 and any(described):
        parts.append(f"{len(panels)} panels")
        parts += [f"{number}: {text}" for number, text in enumerate(described, start=1) if text]
    else:
        parts += described
    parts += [f"the colours show {words}" for bar in bars if (words := _words(bar.get_xlabel() or bar.get_ylabel()))]
    parts += _legends(figure)
    text = ". ".join(part.rstrip(". ") for part in map(_words, parts) if part)
    if len(text) > LIMIT:
        text = text[:LIMIT].rsplit(" ", 1)[0].rstrip(",;. ") + " …"
    return f"{text}." if text and text[-1] not in ".…?!" else text


def _describe_axes(ax) -> str:
    titles = [_words(ax.get_title(where)) for where in ("left", "center", "right")]
    parts = [": ".join(filter(None, titles)), *_axis(ax, "x"), *_axis(ax, "y"), *_plotted(ax)]
    labels = {_words(label) for label in _labels(ax)}
    numbers = any(_bars(container) for container in ax.containers)  # written on bars whose lengths are said already
    words = [_words(text.get_text()) for text in ax.texts]
    said = [word for word in words if word and word not in labels]
    if numbers:
        said = [word for word in said if _number(word) is None]
    said = [word for n, word in enumerate(said) if _number(word) is not None or word not in said[:n]]
    if said:
        parts.append(f"words in it: {_listed(said)}")
    return "; ".join(filter(None, parts))


def _axis(ax, which: str) -> Iterable[str]:
    """What an axis measures, and from where to where; or the names along it."""
    axis = getattr(ax, f"{which}axis")
    low, high = sorted(axis.get_view_interval())
    places = zip(axis.get_ticklabels(), axis.get_majorticklocs(), strict=False)
    ticks = [_words(tick.get_text()) for tick, place in places if low <= place <= high]
    label, ticks = _words(axis.get_label_text()), [tick for tick in ticks if tick]
    if not axis.get_visible() or (not label and not ticks):
        return
    names = [tick for tick in ticks if _number(tick) is None]
    if names and which == "y" and _by_name(ax):
        yield label  # the names come with their marks
    elif names:
        what = f"{label}: " if label else ("from left to right: " if which == "x" else "")
        yield f"{what}{_listed(dict.fromkeys(names))}"
    elif ticks and label:
        logarithmic = ", logarithmic" if axis.get_scale() == "log" else ""
        yield f"{label} from {ticks[0]} to {ticks[-1]}{logarithmic}"
    elif label:
        yield label


def _plotted(ax) -> Iterable[str]:
    """The lines with their ends, the bars with their lengths, and what else has a label."""
    across, named = {}, _by_name(ax)
    lines = [line for line in ax.lines if line.get_transform() == ax.transData]  # not those across the whole Axes
    say = _short_along(ax.yaxis)
    curves = [line for line in lines if line.get_linestyle() != "None" and len(_points(line)) > 1]
    for line in lines:
        label, points = _label(line), _points(line)
        if label and line in curves:
            across[label] = f"{label} {_course(points, say)}"
        elif label:
            across.setdefault(label, f"{label} {say(points[0][1])}" if len(points) == 1 and not named else label)
    for container in ax.containers:
        if not (sizes := _bars(container)):
            continue
        label = _label(container)
        along = _short_along(ax.xaxis if _lying(container) else ax.yaxis)
        values = " ".join(map(along, sizes)) if len(sizes) <= WORDS else f"{len(sizes)} bars"
        across.setdefault(label or f"bars {len(across)}", f"{label or 'bars'} {values}")
    for artist in (*ax.collections, *ax.patches, *ax.images):
        if (label := _label(artist)) and label not in across:
            across[label] = label
    if across:
        yield f"plotted: {', '.join(across.values())}"
    elif len(curves) == 1 and not named:
        yield f"a line {_course(_points(curves[0]), say)}"
    if named:
        yield f"marks at {', '.join(named)}"
    meshes = [collection for collection in ax.collections if type(collection).__name__ == "QuadMesh"]
    if not across and (meshes or ax.images):
        yield "cells by colour"


def _points(line) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(*line.get_data(), strict=True) if _finite(x) and _finite(y)]


def _course(points: list[tuple[float, float]], say: Callable[[float], str]) -> str:
    """From where to where the ys go, and a turn between the ends."""
    ys = [y for _, y in points]
    text = f"from {say(ys[0])} to {say(ys[-1])}"
    slack = 0.1 * (max(ys) - min(ys))
    if max(ys) > max(ys[0], ys[-1]) + slack:
        text += f" over {say(max(ys))}"
    if min(ys) < min(ys[0], ys[-1]) - slack:
        text += f" by way of {say(min(ys))}"
    return text


def _bars(container) -> list[float]:
    """The lengths of a container's bars."""
    patches = [patch for patch in getattr(container, "patches", []) if hasattr(patch, "get_width")]
    return [patch.get_width() if _lying(container) else patch.get_height() for patch in patches]


def _lying(container) -> bool:
    return getattr(container, "orientation", "vertical") == "horizontal"


def _by_name(ax) -> list[str]:
    """Of an Axes with a name at each row, such as one of intervals: each name and where its marks are."""
    ticks = [
        (place, _words(tick.get_text())) for tick, place in zip(ax.get_yticklabels(), ax.get_yticks(), strict=False)
    ]
    if not any(name and _number(name) is None for _, name in ticks):
        return []
    found: dict[str, list[str]] = {}
    say = _short_along(ax.xaxis)
    for line in ax.lines:
        if line.get_transform() == ax.transData and line.get_linestyle() == "None":
            for x, y in _points(line):
                for place, name in ticks:
                    if name and abs(place - y) < 0.3:
                        found.setdefault(name, []).append(say(x))
    return [f"{name} {' and '.join(values)}" for name, values in list(found.items())[:WORDS]]


def _legends(figure) -> Iterable[str]:
    for legend in figure.legends:
        names = dict.fromkeys(_words(text.get_text()) for text in legend.get_texts())
        yield f"legend: {_listed(names)}"


def _labels(ax) -> set[str]:
    return {ax.get_xlabel(), ax.get_ylabel(), *(tick.get_text() for tick in ax.get_yticklabels())}


def _label(artist) -> str:
    label = _words(str(artist.get_label() or ""))
    return "" if label.startswith("_") else label


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - WORDS} more" if len(names) > WORDS else ""
    return ", ".join(names[:WORDS]) + more


def _words(text: str) -> str:
    """A text of the picture as it is read aloud: in one line, without mathtext's marks."""
    if "$" in text:
        text = re.sub(r"\\mathdefault|[{}$]", "", text.replace(r"\times", "×"))
    return " ".join(text.split())


def _number(text: str) -> float | None:
    try:
        return float(text.replace("\N{MINUS SIGN}", "-").replace(",", "").rstrip("%").replace("10^", "1e"))
    except ValueError:
        return None


def _short_along(axis) -> Callable[[float], str]:
    """Writes values of an axis no more exactly than they can be seen: what differs less differs between processors."""
    if axis.get_scale() != "linear":
        return _short
    low, high = axis.get_view_interval()
    decimals = -math.floor(math.log10(abs(high - low) / STEPS))
    return lambda value: _short(round(float(value), decimals) + 0.0 if _finite(value) else value)


def _short(value) -> str:
    return f"{float(value):.3g}".replace("-", "\N{MINUS SIGN}") if _finite(value) else str(value)


def _finite(value) -> bool:
    try:
        return math.isfinite(value)
    except TypeError:
        return False
