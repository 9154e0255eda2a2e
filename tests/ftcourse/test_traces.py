"""The stored trace and the functions that read it, on a trace made by hand and on a new one."""

import gzip
import json

import pytest
import torch

from ftcourse import traces
from ftkit.models import data_dir


def event(name, start, duration, thread=0):
    return {"ph": "X", "name": name, "cat": "cpu_op", "pid": 1, "tid": thread, "ts": start, "dur": duration}


MADE = {
    "traceEvents": [
        event("forward", 0, 100),
        event("aten::linear", 10, 50),
        event("aten::mm", 20, 30),
        event("aten::mm", 70, 20),
        event("backward", 100, 80),
        event("aten::mm", 110, 60, thread=1),
    ]
}


def test_spans_know_their_depth_and_phase():
    spans = traces.spans(MADE)
    assert [(s.name, s.depth) for s in spans if s.thread == 0] == [
        ("forward", 0),
        ("aten::linear", 1),
        ("aten::mm", 2),
        ("aten::mm", 1),
        ("backward", 0),
    ]
    forward, backward = traces.phases(spans)
    assert len(traces.within(spans, forward)) == 3 and [s.thread for s in traces.within(spans, backward)] == [1]
    # Of linear's 50 microseconds 30 are those of the product in it.
    (first, twice, product), (second, once, rest) = traces.heaviest(traces.within(spans, forward))
    assert (first, twice, second, once) == ("aten::mm", 2, "aten::linear", 1)
    assert (product, rest) == (pytest.approx(0.05), pytest.approx(0.02))


def test_the_stored_trace_has_two_steps_and_is_small():
    path = data_dir() / "results" / traces.STORED
    assert path.stat().st_size < 150_000
    spans = traces.spans(traces.read_trace(path))
    assert [s.name for s in traces.phases(spans)] == [*traces.PHASES, *traces.PHASES]
    assert "/" not in gzip.decompress(path.read_bytes()).decode().replace("aten::", "")  # no path of a machine


def test_a_recorded_step_can_be_read_and_drawn(tmp_path):
    class Tiny(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(4, 8)

        def forward(self, ids, attention_mask):
            return type("Out", (), {"logits": self.head(torch.nn.functional.one_hot(ids % 4, 4).float())})

    ids = torch.arange(6).view(2, 3)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    model = Tiny()
    trace = traces.slim(traces.record_steps(model, [batch] * 3, torch.optim.SGD(model.parameters(), lr=0.1)))
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(trace))
    spans = traces.spans(traces.read_trace(path))
    assert [s.name for s in traces.phases(spans)] == [*traces.PHASES, *traces.PHASES]
    assert traces.plot_trace(spans).get_xlim()[1] > 0


def test_the_drawn_step_names_every_phase_and_shows_where_a_name_is_cut():
    spans = traces.spans(traces.read_trace(data_dir() / "results" / traces.STORED))
    said = [text.get_text() for text in traces.plot_trace(spans).texts]
    assert set(traces.PHASES) <= set(said)
    names = {span.name for span in spans}
    assert all(any(name.endswith(text) for name in names) or text.endswith("…") for text in said), said
