"""How long the fine-tune that notebook 16 plans takes: sliders over hours."""

from dataclasses import replace

import ipywidgets

from ftcourse.planning import Cluster, Job, Timing, estimate_time, lora_parameters_of, parameters_of
from ftcourse.plots import OKABE_ITO, new_axes

from . import Explorer

OVERNIGHT = 16.0  # hours
LORA_R = 16
RUNS = {  # label -> model, whether the base is frozen
    "8B, LoRA": ("llama-3-8b", True),
    "8B, full": ("llama-3-8b", False),
    "70B, LoRA": ("llama-3-70b", True),
    "70B, full": ("llama-3-70b", False),
}


def timings(job: Job, cluster: Cluster) -> dict[str, Timing]:
    """The time of each of RUNS."""
    found = {}
    for label, (model, frozen) in RUNS.items():
        total = parameters_of(model)
        found[label] = estimate_time(total, lora_parameters_of(model, LORA_R) if frozen else total, job, cluster)
    return found


class JobExplorer(Explorer):
    """Sliders for conversations, GPUs and MFU over the hours of four fine-tunes.

    Attributes: `conversations` (in thousands), `gpus` and `mfu` (in per cent), the controls; `timings` by run.
    """

    def __init__(self, job: Job, cluster: Cluster):
        self.job, self.cluster = job, cluster
        thousands = job.conversations // 1000
        self.conversations = ipywidgets.IntSlider(thousands, 10, 1000, step=10, description="conversations, thousands")
        self.gpus = ipywidgets.SelectionSlider(options=(1, 2, 4, 8, 16, 32, 64), value=cluster.gpus, description="GPUs")
        self.mfu = ipywidgets.IntSlider(round(100 * cluster.mfu), 5, 60, description="MFU, %")
        super().__init__(self.conversations, (self.gpus, self.mfu))

    @property
    def timings(self) -> dict[str, Timing]:
        job = replace(self.job, conversations=1000 * self.conversations.value)
        return timings(job, replace(self.cluster, gpus=self.gpus.value, mfu=self.mfu.value / 100))

    def state(self) -> str:
        return f"{self.conversations.value},000 conversations, {self.gpus.value} GPUs, MFU {self.mfu.value} %"

    def draw(self) -> str:
        found = self.timings
        ax = new_axes(7.5, 2.2)[1]
        hours = [each.hours for each in found.values()]
        ax.barh(range(len(found)), hours, color=OKABE_ITO[4], hatch="//", edgecolor="white")
        for row, each in enumerate(found.values()):  # beside the picture: within, they would cross the line
            words = f"{each.hours:.1f} h; save every {each.save_every:,} steps"
            ax.annotate(words, (1.02, row), xycoords=("axes fraction", "data"), va="center", fontsize=9)
        ax.plot([OVERNIGHT] * 2, [-0.5, len(found) - 0.4], color="black", linestyle="--")
        ax.text(OVERNIGHT, -0.6, "by tomorrow", ha="center", va="bottom", fontsize=9)
        ax.set(xscale="log", xlim=(min(0.1, *hours) / 1.5, 2 * max(OVERNIGHT, *hours)), ylim=(len(found) - 0.4, -1.2))
        ax.set(yticks=range(len(found)), yticklabels=list(found), xlabel="estimated hours")
        ax.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
        ax.minorticks_off()
        said = ", ".join(f"{label}: {each.hours:.1f} h" for label, each in found.items())
        return self.captioned(ax.figure, f"{self.state()}. {said}. Whether it fits is another question.")


def job_explorer(job: Job, cluster: Cluster) -> JobExplorer:
    return JobExplorer(job, cluster)
