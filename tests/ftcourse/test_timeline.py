"""The timeline of an FSDP step: by hand for few layers, and its limits."""

from dataclasses import replace
from itertools import pairwise

import pytest

from ftcourse.timeline import COMPUTE, NETWORK, Cluster, Plan, end_of, exposed, plan_of_model, timeline
from ftkit.memory import published_meta_model

# A layer: forward 1 s, backward 2 s. Moving 100 parameters of 2 bytes over half of 2 ranks: 1 s; gradients of 4: 2 s.
PLAN = Plan(
    layers=2, layer_parameters=100, root_parameters=100, tokens=1, ranks=2, flops=200, bandwidth=100, head_parameters=0
)


def found(plan: Plan) -> dict[tuple[str, int], list[tuple[float, float]]]:
    events: dict = {}
    for event in timeline(plan):
        if event.end > event.start:
            events.setdefault((event.what, event.layer), []).append((event.start, event.end))
    return events


def test_two_layers_by_hand():
    assert found(PLAN) == {
        ("all-gather", -1): [(0, 1)],
        ("all-gather", 0): [(1, 2), (5, 6)],  # again in backward
        ("forward", 0): [(2, 3)],
        ("all-gather", 1): [(2, 3), (4, 5)],  # while layer 0 computes
        ("forward", 1): [(3, 4)],
        ("backward", 1): [(5, 7)],
        ("reduce-scatter", 1): [(7, 9)],
        ("backward", 0): [(7, 9)],
        ("reduce-scatter", 0): [(9, 11)],
        ("reduce-scatter", -1): [(11, 13)],
    }
    assert end_of(timeline(PLAN)) == 13 and exposed(timeline(PLAN)) == 13 - 6


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({"prefetch": False}, 14),  # forward of layer 1 waits for its all-gather
        ({"reshard": False}, 12),  # no all-gather before backward
        ({"recompute": True}, 15),  # backward takes 3 s
        ({"gather_bytes": 4}, 17),
        ({"bandwidth": 1e9}, 6),
        ({"micro_batches": 2}, 13 + 9),  # gathered again, gradients reduced once
    ],
)
def test_what_changes_a_step(changes, end):
    assert end_of(timeline(replace(PLAN, **changes))) == pytest.approx(end, abs=1e-5)


def test_the_network_carries_one_collective_at_a_time_and_no_layer_computes_before_its_weights():
    for bandwidth in (10, 100, 1000):
        events = timeline(replace(PLAN, layers=5, bandwidth=bandwidth, micro_batches=2))
        for stream in (COMPUTE, NETWORK):
            spans = sorted((event.start, event.end) for event in events if event.stream == stream)
            assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(spans))
        gathered = {}
        for event in events:
            if event.what == "all-gather":
                gathered[event.layer] = event.end
            elif event.stream == COMPUTE:
                assert event.start >= gathered[event.layer]


def test_a_step_is_never_faster_than_either_stream():
    for bandwidth in (10, 50, 100, 1000):
        events = timeline(replace(PLAN, layers=6, bandwidth=bandwidth))
        for stream in (COMPUTE, NETWORK):
            assert end_of(events) >= sum(event.end - event.start for event in events if event.stream == stream)
        assert exposed(events) >= 0


def test_bandwidth_knows_of_nodes():
    assert Cluster(8).bandwidth == 450e9  # NVLink
    assert Cluster(64).bandwidth == 400e9 and Cluster(64).nodes == 8  # eight cards together, not one
    assert Cluster(64, cards=1).bandwidth == 50e9
    assert Cluster(64, in_node=25e9).bandwidth == 25e9  # slow links in the node


def test_a_published_model_becomes_a_plan():
    model = published_meta_model("llama-3-8b")
    plan = plan_of_model(model, Cluster(64), batch=1, length=4096, flops=400e12)
    assert plan.layers * plan.layer_parameters + plan.root_parameters == sum(p.numel() for p in model.parameters())
    assert plan.root_parameters == 2 * 128_256 * 4096 + 4096
    compute = sum(event.end - event.start for event in timeline(plan) if event.stream == COMPUTE)
    matrices = plan.layers * plan.layer_parameters + plan.head_parameters
    # 6 FLOPs per parameter and token, and attention, of which the causal half counts
    assert compute == pytest.approx((6 * matrices + 6 * 32 * 4096 * 4096) * 4096 / 400e12, rel=1e-3)
