"""Collectives are counted by name, inside the block only."""

import torch
import torch.distributed as dist

from ftcourse.instruments import CountCollectives, flight_record


def test_each_collective_is_counted_and_nothing_else():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        x, y = torch.ones(2), torch.empty(2)
        dist.all_reduce(x)
        with CountCollectives() as sent:
            dist.all_reduce(x * 2)
            dist.all_reduce(x)
            dist.broadcast(x, 0)
            dist.all_gather_into_tensor(y, x)
            dist.reduce_scatter_tensor(y, x)
        dist.all_reduce(x)
    finally:
        dist.destroy_process_group()
    assert sent.counts == {"all_reduce": 2, "broadcast": 1, "all_gather": 1, "reduce_scatter": 1}


def test_the_flight_recorder_lists_collectives_in_their_order():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        group, before = dist.new_group(), len(flight_record())
        assert len(flight_record()) == before  # reading records nothing
        dist.all_reduce(torch.ones(2, 3), group=group)
        dist.broadcast(torch.ones(4), 0, group=group)
        entries = flight_record()[before:]
    finally:
        dist.destroy_process_group()
    first, second = ((e["collective_seq_id"], e["profiling_name"], e["input_sizes"]) for e in entries)
    assert first == (1, "gloo:all_reduce", [[2, 3]]) and second == (2, "gloo:broadcast", [[4]])
