"""Metrics: a line a step, and after a crash none twice."""

import json

from ftkit.finetune.metrics import MetricsFile


def test_lines_of_steps_done_again_are_dropped_and_half_a_line_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0)
    for step in (1, 2, 3):
        file.write({"step": step, "loss": 1 / step})
    path.write_text(path.read_text() + '{"step": 4, "lo')  # a crash while writing
    again = MetricsFile(path, 2)
    again.write({"step": 3, "loss": 0.5})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3] and rows[-1]["loss"] == 0.5
    MetricsFile(path, 0)
    assert path.read_text() == ""
