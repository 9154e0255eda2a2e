"""The explorer of a job follows its sliders, and says what `estimate_time` says."""

import pytest

from ftcourse.explorers.job import RUNS, JobExplorer, job_explorer, timings
from ftcourse.planning import Cluster, Job

JOB, CLUSTER = Job(conversations=100_000, tokens=700, epochs=2, batch_size=128), Cluster(gpus=8, mfu=0.2)


def test_hours_follow_gpus_conversations_and_mfu():
    explorer = job_explorer(JOB, CLUSTER)
    first, picture = explorer.timings, explorer.picture.value
    assert first == timings(JOB, CLUSTER) and list(first) == list(RUNS)
    explorer.gpus.value = 16
    assert explorer.timings["8B, full"].hours == pytest.approx(first["8B, full"].hours / 2)
    explorer.mfu.value = 40
    assert explorer.timings["8B, full"].hours == pytest.approx(first["8B, full"].hours / 4)
    explorer.conversations.value = 200
    assert explorer.timings["70B, LoRA"].hours == pytest.approx(first["70B, LoRA"].hours / 2, rel=1e-2)
    assert explorer.picture.value != picture and "16 GPUs" in explorer.caption
    assert "200,000 conversations" in repr(explorer)


def test_no_words_stand_across_the_line(monkeypatch):
    figures = []
    monkeypatch.setattr(JobExplorer, "captioned", lambda self, figure, *_: figures.append(figure) or "")
    explorer = job_explorer(JOB, CLUSTER)
    for gpus in explorer.gpus.options:
        explorer.gpus.value = gpus
        figure = figures[-1]
        figure.canvas.draw()
        (ax,) = figure.axes
        (line,) = ax.lines
        crossed = [t.get_text() for t in ax.texts if t.get_window_extent().overlaps(line.get_window_extent())]
        assert crossed == [], gpus
