"""The counter of live bytes against sums by hand."""

from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ftkit._compat import fake_ranks, fake_tensors
from ftkit.memory.tracker import MemoryTracker

KIB = torch.empty(256)  # 1 KiB of float32


def test_storages_count_once_and_go():
    with MemoryTracker() as live:
        first = torch.ones(256)
        view = first.view(16, 16)[3:]
        assert live.now == 1024
        second = first + 1
        assert live.now == 2048 and live.peaks == {"start": 2048}
        del second
        assert live.now == 1024
        del first
        assert live.now == 1024  # the view still holds it
        del view
        assert live.now == 0


def test_kinds_phases_and_resized_storages():
    layer = nn.Linear(16, 16, bias=False)
    with MemoryTracker(vocabulary=16) as live:
        live.label(layer.parameters(), "weights")
        live.begin("forward")
        out = layer(torch.ones(4, 16))
        assert live.by_kind["weights"] == 1024 and live.by_kind["logits"] >= out.nbytes
        kept = torch.ones(256)
        kept.untyped_storage().resize_(0)
        assert live.by_kind["unsharded"] == 0
        kept.untyped_storage().resize_(4096)
        assert live.by_kind["unsharded"] == 4096
        live.ignore([KIB])
        assert (KIB.view(2, 128)).shape == (2, 128)
        assert live.now == sum(live.by_kind.values())
        assert live.at_peak["forward"]["unsharded"] == 4096
        live.prefix = "second "
        live.begin("forward")
    assert set(live.peaks) == {"start", "forward", "second forward"}
    assert torch.UntypedStorage.resize_.__name__ == "resize_"  # put back


def test_a_gradient_has_its_kind():
    layer = nn.Linear(16, 16, bias=False)
    layer.weight.register_post_accumulate_grad_hook(lambda p: live.label([p.grad], "gradients"))
    with MemoryTracker() as live:
        live.label(layer.parameters(), "weights")
        layer(torch.ones(4, 16)).sum().backward()
        assert live.by_kind["gradients"] == 1024
        layer.weight.grad = None
        assert live.by_kind["gradients"] == 0


@pytest.mark.parametrize("tensors", [fake_tensors, nullcontext], ids=["fake", "real"])
def test_what_a_collective_gives_counts_once(tensors):
    """In fake tensors, waiting for it makes another tensor; counted twice, it put tensor-parallel peaks off."""
    functional = torch.ops._c10d_functional
    with fake_ranks(2), tensors(), MemoryTracker() as live:
        own = torch.ones(256)
        summed = functional.all_reduce(own, "sum", dist.group.WORLD.group_name)
        assert live.now == 2 * 1024
        waited = functional.wait_tensor(summed)
        assert live.now == 2 * 1024
        del summed
        assert live.now == 2 * 1024 and waited.nbytes == 1024
