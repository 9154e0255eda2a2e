"""The meter against torch's profiler, and what it counts as an operation."""

from itertools import accumulate

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from ftcourse.meter import Meter, metered


def full_loss(hidden, head, labels):
    logits = hidden @ head.T
    F.cross_entropy(logits, labels).backward()


def test_the_meter_counts_what_the_allocator_gives():
    hidden, head = torch.randn(100, 8, requires_grad=True), torch.randn(500, 8, requires_grad=True)
    labels = torch.randint(500, (100,))
    peak = metered(full_loss, hidden, head, labels).peak
    hidden.grad = head.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        full_loss(hidden, head, labels)
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    allocated = max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))
    assert peak == pytest.approx(allocated, rel=0.001) and peak >= 4 * labels.numel() * 500 * 4


def test_views_move_nothing_and_operations_in_place_do():
    x = torch.ones(10, 10)
    with Meter() as meter:
        x.view(100)[:50]
    assert meter.moved == 0 and not meter.operations and meter.peak == 0
    with Meter() as meter:
        x.add_(1)
        y = x + 1
    assert meter.operations == {"add_": 1, "add": 1} and meter.moved == 4 * x.nbytes and meter.peak == y.nbytes
