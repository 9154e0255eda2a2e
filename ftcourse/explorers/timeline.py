"""Pictures of an FSDP step in time: what computes, what the network carries, and how much of it nothing hides."""

from collections.abc import Sequence

import ipywidgets

from ftcourse.alternative_text import caption
from ftcourse.plots import HATCHES, OKABE_ITO, new_axes
from ftcourse.timeline import COMPUTE, NETWORK, Cluster, Event, end_of, exposed, plan_of_model, timeline
from ftkit.memory import published_meta_model

from . import Explorer

LOOKS = {"forward": 0, "backward": 1, "all-gather": 2, "reduce-scatter": 3}  # -> colour and hatch


def plot_timeline(rows: dict[str, Sequence[Event]], *, unit: str = "ms", names: bool = True):
    """Draw steps above each other, each with a line for compute and one for the network; return the Axes.

    rows: label -> events; names: write the number of the layer into each bar that has room, R for the root.
    """
    scale = {"s": 1.0, "ms": 1e3}[unit]
    _, ax = new_axes(8.5, 1.2 + 0.8 * len(rows))
    ticks, drawn = [], {}
    narrow = 0.015 * scale * max(map(end_of, rows.values()))  # too narrow for a digit
    for number, (label, events) in enumerate(rows.items()):
        for line, stream in enumerate((COMPUTE, NETWORK)):
            y = 2.4 * number + line
            ticks.append((y, f"{label}{': ' if label else ''}{stream}"))
            for event in (event for event in events if event.stream == stream and event.end > event.start):
                look = LOOKS[event.what]
                width = scale * (event.end - event.start)
                (bar,) = ax.barh(
                    y,
                    width,
                    left=scale * event.start,
                    height=0.8,
                    color=OKABE_ITO[look],
                    hatch=HATCHES[look],
                    edgecolor="white",
                )
                drawn.setdefault(event.what, bar)
                name = "R" if event.layer < 0 else str(event.layer)
                if names and width > narrow * len(name):
                    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
                    ax.text(scale * event.start + width / 2, y, name, ha="center", va="center", fontsize=8, bbox=box)
        ax.plot([scale * end_of(events)] * 2, [2.4 * number - 0.5, 2.4 * number + 1.5], color="black", linestyle=":")
    ax.set_yticks(*zip(*ticks, strict=True))
    ax.set(xlabel=f"{unit} since the step began", ylim=(2.4 * len(rows) - 0.9, -0.6), xlim=(0, None))
    ax.legend(drawn.values(), drawn.keys(), frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    return caption(
        ax, "steps in time, each as a line for compute above a line for the network, with the layers' numbers"
    )


def plot_exposed(curves: dict[str, dict[int, float]]):
    """Draw the share of a step that waits for the network over tokens per GPU, a line each; return the Axes."""
    _, ax = new_axes(7.0, 3.2)
    for number, (label, points) in enumerate(curves.items()):
        style = ("-", "--", ":", "-.")[number % 4]
        ax.plot(
            list(points),
            [100 * share for share in points.values()],
            style,
            marker="osD^"[number % 4],
            color=OKABE_ITO[(0, 1, 5, 2)[number % 4]],
            label=label,
        )
    ax.set_xscale("log", base=2)
    tokens = list(next(iter(curves.values())))
    ax.set_xticks(tokens, [f"{count:,}" for count in tokens])
    ax.set(xlabel="tokens per GPU and step", ylabel="% of the step waits for the network", ylim=(0, 100))
    ax.legend(frameon=False)
    return ax


class TimelineExplorer(Explorer):
    """A menu of models and sliders for GPUs, tokens per GPU and cards per node, over what a step computes and waits.

    Attributes: `model`, `gpus`, `tokens` and `cards`, the controls; `seconds`, `waiting`: of the step, and how much of
    it waits for the network.
    """

    hint = "choose others"

    def __init__(self, flops: float, models: Sequence[str] = ("llama-3-8b", "llama-3-70b"), length: int = 2048):
        self.flops, self.length = flops, length
        self._models = {name: published_meta_model(name) for name in models}
        self.model = ipywidgets.Dropdown(options=list(models), description="model")
        self.gpus = ipywidgets.SelectionSlider(options=[8, 16, 64, 256], description="GPUs")
        tokens = [length * n for n in (1, 2, 4, 8, 16)]
        options = [(f"{count:,}", count) for count in tokens]
        self.tokens = ipywidgets.SelectionSlider(options=options, value=tokens[1], description="tokens per GPU")
        self.cards = ipywidgets.SelectionSlider(options=[1, 4, 8], value=8, description="cards per node")
        super().__init__((self.model, self.gpus), (self.tokens, self.cards))

    def state(self) -> str:
        return (
            f"{self.model.value}, {self.gpus.value} GPUs, {self.tokens.value} tokens per GPU, "
            f"{self.cards.value} cards per node"
        )

    def draw(self) -> str:
        cluster = Cluster(self.gpus.value, cards=self.cards.value)
        batch = self.tokens.value // self.length
        given = {"batch": batch, "length": self.length, "flops": self.flops, "recompute": True}
        events = timeline(plan_of_model(self._models[self.model.value], cluster, **given))
        self.seconds, self.waiting = end_of(events), exposed(events)
        _, ax = new_axes(6.5, 1.3)
        parts = (("compute", self.seconds - self.waiting, 0), ("waits for the network", self.waiting, 5))
        left = 0.0
        for label, width, look in parts:
            hatch = HATCHES[1] if look else ""
            ax.barh([""], [width], left=left, label=label, color=OKABE_ITO[look], hatch=hatch, edgecolor="white")
            left += width
        ax.set(xlabel="seconds of a step", xlim=(0, 1.05 * left))
        ax.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
        caption = (
            f"{self.state()}: {self.seconds:.2f} s a step, of which {self.waiting / self.seconds:.0%} waits for the "
            "network"
        )
        return self.captioned(ax.figure, caption)
