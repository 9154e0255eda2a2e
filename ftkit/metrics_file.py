"""The metrics of a run: one JSON object a line."""

import json
from pathlib import Path


class MetricsFile:
    """Opened for a run that goes on after `first_step`: lines of steps that it will do again are dropped."""

    def __init__(self, path: Path, first_step: int):
        self.path = path
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        # A crash can leave half a line at the end.
        rows = [json.loads(line) for line in lines if line.endswith("}\n")]
        kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= first_step]
        path.write_text("".join(kept))

    def write(self, row: dict) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
