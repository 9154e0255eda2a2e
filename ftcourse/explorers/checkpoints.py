"""How often to save, and what a killed run did: the pictures of notebook 15, and the estimate behind one of them."""

import math
import random
from collections.abc import Sequence

import ipywidgets

from ftcourse.alternative_text import caption
from ftcourse.plots import OKABE_ITO, new_axes

from . import Explorer

DAY, MINUTE = 86_400.0, 60.0  # seconds


def young_interval(write: float, between_failures: float) -> float:
    """Seconds between two checkpoints by Young (1974), from the seconds of a write and between two failures."""
    return math.sqrt(2 * write * between_failures)


def lost_share(interval: float, write: float, between_failures: float, restart: float) -> float:
    """The share of time lost to writing, to work done again and to restarts; all in seconds, first order."""
    return write / interval + (interval / 2 + restart) / between_failures


def simulate_lost_share(
    interval: float, write: float, between_failures: float, restart: float, segments: int = 20_000, seed: int = 0
) -> float:
    """The same by chance: a failure within an interval or its write undoes it. Exponential times between failures."""
    rng, spent = random.Random(seed), 0.0
    for _ in range(segments):
        while (failure := rng.expovariate(1 / between_failures)) < interval + write:
            spent += failure + restart
        spent += interval + write
    return 1 - segments * interval / spent


def plot_attempts(attempts: Sequence[Sequence[int]], killed: int, save_every: int, ax=None):
    """Draw a line for each attempt with a mark for each step that it finished, and a cross where a rank was killed."""
    ax = ax or new_axes(7.5, 0.9 + 0.6 * len(attempts))[1]
    last = max(max(steps) for steps in attempts)
    for row, steps in enumerate(attempts):
        ax.plot(steps, [row] * len(steps), color=OKABE_ITO[2 * row], marker="os^"[row], markersize=7)
    ax.plot(killed, 0, "x", color=OKABE_ITO[5], markersize=13, mew=3)
    ax.annotate("SIGKILL", (killed, 0), (0, 11), textcoords="offset points", ha="center")
    for step in range(save_every, last, save_every):
        ax.axvline(step, color="0.6", linestyle=":", zorder=0)
    names = [f"attempt {row}" for row in range(len(attempts))]
    ax.set(yticks=range(len(attempts)), yticklabels=names, ylim=(len(attempts) - 0.5, -0.7))
    ax.set(xticks=range(1, last + 1), xlabel="step; dotted: a checkpoint is saved after it")
    steps = "; ".join(f"attempt {row} finished steps {own[0]} to {own[-1]}" for row, own in enumerate(attempts))
    return caption(ax, f"{steps}; a rank of attempt 0 was killed in step {killed}")


class IntervalExplorer(Explorer):
    """Sliders for the seconds of a write, failures per day and minutes of a restart over the share of lost time.

    Attributes: `write`, `failures`, `restart`, the controls; `best`, Young's interval in minutes; `lost`, the share
    of time that is lost there.
    """

    def __init__(self, write: int = 30, failures: int = 4, restart: int = 5):
        self.write = ipywidgets.IntSlider(write, 1, 300, description="write, s")
        self.failures = ipywidgets.IntSlider(failures, 1, 48, description="failures/day")
        self.restart = ipywidgets.IntSlider(restart, 0, 60, description="restart, min")
        super().__init__((self.write, self.failures, self.restart))

    @property
    def _seconds(self) -> tuple[float, float, float]:
        return self.write.value, DAY / self.failures.value, MINUTE * self.restart.value

    @property
    def best(self) -> float:
        write, between, _ = self._seconds
        return young_interval(write, between) / MINUTE

    @property
    def lost(self) -> float:
        return lost_share(self.best * MINUTE, *self._seconds)

    def state(self) -> str:
        return f"write {self.write.value} s, {self.failures.value} failures a day, restart {self.restart.value} min"

    def draw(self) -> str:
        minutes = [2 ** (k / 8) for k in range(80)]
        shares = [100 * lost_share(MINUTE * m, *self._seconds) for m in minutes]
        ax = new_axes(6.5, 2.8)[1]
        ax.plot(minutes, shares, color=OKABE_ITO[0])
        share = 100 * min(self.lost, 1.0)
        ax.plot(self.best, share, "o", color=OKABE_ITO[5], markersize=9)
        # Above the axes: anywhere within, they cross the curve for some values.
        ax.set_title(f"least: {share:.1f} %, saved every {self.best:.0f} min", fontsize=10)
        top = next((top for top in (25, 60) if share < 0.75 * top), 120)  # the mark is in view
        ax.set(xscale="log", ylim=(0, top), xlabel="minutes between checkpoints", ylabel="time lost, %")
        ax.set_xticks([1, 3, 10, 30, 100, 300], ["1", "3", "10", "30", "100", "300"])
        ax.set_yticks([tick for tick in ax.get_yticks() if tick <= 100])
        ax.minorticks_off()
        lost = f"{self.lost:.1%} is lost" if self.lost < 1 else "and even then no time is left for training"
        return self.captioned(ax.figure, f"{self.state()}: save every {self.best:.0f} minutes, {lost}.")


def interval_explorer() -> IntervalExplorer:
    """30 seconds to write, four failures a day, five minutes to restart."""
    return IntervalExplorer()
