"""Events of a step: from made-up ranges of the profiler, and recorded again on two ranks as they are stored."""

import json
import random

import pytest

from ftcourse.explorers.fsdp import RECORD, order, read_steps
from ftcourse.fsdp_steps import (
    APART,
    BACKWARD,
    FORWARD,
    GATHER,
    LAYERS,
    RESHARD,
    ROOT,
    SCATTER,
    WHOLE,
    Event,
    events_of,
    held_at_moments,
    held_bytes,
    moments,
    unit_bytes,
    wrap,
)
from ftcourse.runs import torchrun
from ftcourse.studies.fsdp_step import PREFETCHED
from ftkit import load_base

# A layer that is resharded after its forward pass, in a root that is not.
RANGES = [
    ("FSDP::root_pre_forward", 0, 1),
    ("FSDP::all_gather", 1, 2),
    ("FSDP::all_gather_copy_out", 2, 3),
    ("FSDP::all_gather (model.layers.0)", 4, 5),
    ("FSDP::all_gather_copy_out (model.layers.0)", 5, 6),
    ("step::forward begins: layer 0", 7, 7),
    ("step::forward ends: layer 0", 8, 8),
    ("FSDP::post_forward (model.layers.0)", 9, 10),
    ("FSDP::post_forward", 11, 12),
    ("FSDP::pre_backward", 13, 14),
    ("FSDP::all_gather (model.layers.0)", 15, 16),
    ("FSDP::backward_prefetch for model.layers.0", 15, 16),
    ("FSDP::all_gather_copy_out (model.layers.0)", 16, 17),
    ("step::backward begins: layer 0", 18, 18),
    ("FSDP::post_backward_reshard (model.layers.0)", 20, 21),
    ("FSDP::post_backward_reduce (model.layers.0)", 21, 22),
    ("FSDP::post_backward_reshard", 23, 24),
    ("FSDP::post_backward_reduce", 24, 25),
]


def of(events, kind, unit):
    return [(event.start, event.end) for event in events if (event.kind, event.unit) == (kind, unit)]


def test_ranges_become_events_in_their_order():
    events = events_of(RANGES)
    kinds = [kind for kind, unit in order(events) if unit == "layer 0" and kind != "copy-out"]
    assert kinds == [GATHER, FORWARD, RESHARD, GATHER, BACKWARD, RESHARD, SCATTER]
    # The root stays unsharded after its forward pass: only the reshard of the backward pass is one.
    assert len(of(events, RESHARD, ROOT)) == 1 and of(events, RESHARD, ROOT)[0] > of(events, BACKWARD, "layer 0")[0]
    # A backward pass ends where FSDP acts.
    (backward,) = of(events, BACKWARD, "layer 0")
    assert backward[1] == of(events, RESHARD, "layer 0")[1][0]
    assert {place for event in events for place in (event.start, event.end)} == set(
        range(max(e.end for e in events) + 1)
    )


def test_a_reshard_of_what_is_sharded_already_is_none():
    """torch 2.11 ends the backward pass of a unit that stayed unsharded twice: when it does, and with the step."""
    twice = [*RANGES, ("FSDP::post_backward_reshard", 26, 27), ("FSDP::post_backward_reshard (model.layers.0)", 27, 28)]
    assert events_of(twice) == events_of(RANGES)


def test_held_bytes_count_parameters_and_gradients():
    events = events_of(RANGES)
    held = held_bytes(events, {"layer 0": 10, ROOT: 100})
    (first, second), (forward,) = of(events, GATHER, "layer 0"), of(events, FORWARD, "layer 0")
    assert held[0] == (100, 0) and held[first[0]] == (110, 0) and held[forward[0]] == (110, 0)
    assert held[second[0] - 1] == (100, 0)  # resharded in between
    assert held_at_moments(events, {"layer 0": 10, ROOT: 100}) == [(110, 0), (110, 110)]
    assert held[-1] == (0, 0)


def test_without_the_reshard_a_layer_would_be_held_on():
    events = [event for event in events_of(RANGES) if event.kind != RESHARD]
    assert held_bytes(events, {"layer 0": 10})[-1][0] > 0


def test_units_share_all_parameters():
    model, _ = load_base()
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    sizes = {how: unit_bytes(model, how) for how in (WHOLE, LAYERS, APART)}
    assert {how: sum(units.values()) for how, units in sizes.items()} == dict.fromkeys(sizes, total)
    assert {how: len(units) for how, units in sizes.items()} == {WHOLE: 1, LAYERS: 5, APART: 6}


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="'all': give one of whole model"):
        wrap(None, None, "all")


def test_stored_steps_show_what_the_lesson_says():
    steps = read_steps()
    assert list(steps) == [WHOLE, LAYERS, APART, PREFETCHED]
    for events, sizes in steps.values():
        units = {event.unit for event in events if event.kind == GATHER}
        assert units == set(sizes)
        assert len(moments(events)) == 12 and held_bytes(events, sizes)[-1] == (0, 0)
    ours, prefetched = (steps[name][0] for name in (APART, PREFETCHED))
    # Backward: layer 2 is gathered before layer 3 computes. Forward: only with explicit prefetching.
    assert of(ours, GATHER, "layer 2")[1][1] <= of(ours, BACKWARD, "layer 3")[0][0]
    assert of(ours, GATHER, "layer 1")[0][0] >= of(ours, FORWARD, "layer 0")[0][1]
    assert of(prefetched, GATHER, "layer 1")[0][1] <= of(prefetched, FORWARD, "layer 0")[0][0]


def test_a_step_recorded_again_has_the_stored_order(tmp_path):
    again = tmp_path / "again.json"
    torchrun("-m", "ftcourse.studies.fsdp_step", "--output", again, ranks=2, quiet=True)
    stored, found = read_steps(), read_steps(again)
    assert {name: sizes for name, (_, sizes) in found.items()} == {name: sizes for name, (_, sizes) in stored.items()}
    for name, (events, _) in found.items():
        assert order(events) == order(stored[name][0]), name
    other = random.Random(0).choice([WHOLE, LAYERS, PREFETCHED])  # the comparison sees a difference
    assert order(stored[other][0]) != order(found[APART][0])
    assert json.loads(RECORD.read_text())["ranks"] == 2 and isinstance(found[APART][0][0], Event)
