"""Learning rates by step, as transformers' own schedulers give them, and a slider over the size of the data."""

import math

import ipywidgets
import torch
from transformers import get_scheduler

from ftcourse.plots import OKABE_ITO, new_axes

from . import Explorer


def learning_rates(name: str, warmup: int, steps: int, peak: float = 1.0) -> list[float]:
    """The learning rate of each of `steps` steps under the schedule `name` of `transformers.get_scheduler`."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = get_scheduler(name, optimizer, warmup, steps)
    rates = []
    for _ in range(steps):
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    return rates


def plot_schedules(schedules: dict[str, list[float]], *, ax=None):
    """Draw learning rates by step, a line for each label, told apart by its dashes (up to four); return the Axes."""
    ax = ax or new_axes(6.0, 2.8)[1]
    for (label, rates), dashes, colour in zip(
        schedules.items(), ("-", "--", ":", "-."), (OKABE_ITO[i] for i in (0, 5, 2, 6)), strict=False
    ):
        ax.plot(rates, dashes, color=colour, linewidth=2, label=label)
    ax.set(xlabel="optimizer step", ylabel="learning rate (share of the peak)", ylim=(0, 1.05))
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


class ScheduleExplorer(Explorer):
    """A number of warmup steps, beside a share of all steps, over runs on few and many examples.

    Attributes: `slider` (number of examples), `steps` of the run, `reached` (share of the peak with the fixed
    warmup).
    """

    def __init__(self, warmup: int, share: float, batch_size: int, epochs: int, examples: int):
        self.warmup, self.share, self.batch_size, self.epochs = warmup, share, batch_size, epochs
        self.slider = ipywidgets.IntSlider(value=examples, min=32, max=2048, step=32, description="examples")
        super().__init__(self.slider)

    def state(self) -> str:
        return f"{self.slider.value} examples"

    def draw(self) -> str:
        self.steps = math.ceil(self.slider.value / self.batch_size) * self.epochs
        fixed = learning_rates("linear", self.warmup, self.steps)
        fitted = learning_rates("linear", round(self.share * self.steps), self.steps)
        self.reached = max(fixed)
        caption = (
            f"{self.slider.value} examples make {self.steps} steps: {self.warmup} steps of warmup reach "
            f"{self.reached:.0%} of the peak, a share of {self.share:.0%} reaches {max(fitted):.0%}."
        )
        lines = {f"warmup of {self.warmup} steps": fixed, f"warmup of {self.share:.0%}": fitted}
        return self.captioned(plot_schedules(lines).figure, caption)


def schedule_explorer(
    warmup: int = 100, share: float = 0.1, batch_size: int = 16, epochs: int = 10, examples: int = 96
) -> ScheduleExplorer:
    """Return a `ScheduleExplorer`. Raises ValueError for a number that is not positive."""
    if min(warmup, share, batch_size, epochs, examples) <= 0:
        raise ValueError("warmup, share, batch_size, epochs and examples must be positive")
    return ScheduleExplorer(warmup, share, batch_size, epochs, examples)
