"""The metrics of a run: one JSON object a line in a file, and a progress bar."""

import json
from pathlib import Path

from tqdm import tqdm


class MetricsFile:
    """OUTPUT/metrics.jsonl. Opened for a run that continues after `first_step`: lines of later steps, which it will do
    again, are dropped."""

    def __init__(self, path: Path, first_step: int):
        self.path = path
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        # A crash can leave half a line at the end.
        records = [json.loads(line) for line in lines if line.endswith("}\n")]
        path.write_text("".join(json.dumps(record) + "\n" for record in records if record["step"] <= first_step))

    def write(self, record: dict) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def last(self, name: str) -> dict | None:
        """The last record that has this metric."""
        records = [json.loads(line) for line in self.path.read_text().splitlines()]
        return next((record for record in reversed(records) if name in record), None)


class Logger:
    """Where a run's metrics go: `file`, experiment trackers and a progress bar over its steps; nowhere on other ranks
    than the main one."""

    def __init__(self, file: MetricsFile | None, trackers: list, first: int, last: int):
        self._file, self._trackers = file, trackers
        self._bar = tqdm(initial=first, total=last, desc="fine-tune", disable=file is None)

    def log(self, record: dict) -> None:
        """Store the metrics of a step and move the bar."""
        if self._file:
            self._file.write(record)
        for tracker in self._trackers:
            tracker.log(record, step=record["step"])
        self._bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
        self._bar.update()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._file:
            tqdm.write(text)

    def close(self) -> None:
        self._bar.close()
        for tracker in self._trackers:
            tracker.finish()
