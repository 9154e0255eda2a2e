"""Read the record of SmolLM2-135M's fine-tunes on one process and two ranks, killed and resumed, merged and asked.

`python -m experiments.real_model --data SNIPS` makes data/results/real_model.json (it needs the checkout); of that file
this module reads `lifecycle`. Seconds are of two shared cores.
"""

import json
import re
import statistics
from pathlib import Path

from ftkit.models import data_dir

PAIRS = {  # a run -> the one that it has to agree with
    "lora, 2 ranks": "lora, 1 process",
    "lora, killed and resumed": "lora, 1 process",
    "full, 2 ranks": "full, 1 process",
}
UNITS = {"GiB": 2**30, "MiB": 2**20}


class Lifecycle:
    """The record: `model`, `runs` by name, and `exact_calls` before and after."""

    def __init__(self, path: Path | None = None):
        stored = json.loads((path or data_dir() / "results" / "real_model.json").read_text())
        self.model, record = stored["model"], stored["lifecycle"]
        self.runs, self.exact_calls, self.data = record["runs"], record["exact_calls"], record["data"]

    def loss_gap(self, name: str) -> float:
        """The largest difference of a step's loss from the run that this one has to agree with."""
        ours, theirs = self.runs[name]["losses"], self.runs[PAIRS[name]]["losses"]
        return max(abs(a - b) for a, b in zip(ours, theirs, strict=False))

    def memory(self, name: str) -> tuple[float, float]:
        """Peak bytes of a rank: estimated before the run, and measured in its second step."""
        found = re.findall(r"([\d.]+) (GiB|MiB)", self.runs[name]["memory"])
        estimated, measured = (float(number) * UNITS[unit] for number, unit in found)
        return estimated, measured

    def predicted_seconds(self, name: str, first: int = 5) -> tuple[float, float]:
        """Seconds of all steps: from the median of steps 2 to `first`, and as they were."""
        seconds = self.runs[name]["seconds"]
        return statistics.median(seconds[1:first]) * len(seconds), sum(seconds)

    def step_seconds(self, name: str) -> float:
        """The median of all steps but the first."""
        return statistics.median(self.runs[name]["seconds"][1:])

    def greedy_differences(self, name: str = "lora, 1 process") -> tuple[int, int]:
        """Of a merge: greedy tokens that differ from the adapter's, and how many were compared."""
        differing, compared = re.search(r"(\d+) of (\d+) greedy", self.runs[name]["merge"]).groups()
        return int(differing), int(compared)

    def table(self) -> str:
        """A line for each run."""
        head = f"{'run':25}{'steps':>6}{'loss apart':>12}{'MiB, estimated':>16}{'measured':>10}"
        lines = [head]
        for name, run in self.runs.items():
            gap = f"{self.loss_gap(name):.0e}" if name in PAIRS else ""
            estimated, measured = (f"{size / 2**20:,.0f}" for size in self.memory(name))
            lines.append(f"{name:25}{len(run['losses']):6}{gap:>12}{estimated:>16}{measured:>10}")
        return "\n".join(lines)
