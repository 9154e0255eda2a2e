"""One place decides device and dtype; the machines that are not at hand are played by fakes."""

import pytest
import torch

from ftkit.distributed.device import pick_device


def gpu(monkeypatch, capability, count=1):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)


def test_cpu_and_mps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert str(pick_device()) == "cpu in float32" and pick_device().backend == "gloo"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert str(pick_device()) == "mps in float32"
    assert str(pick_device(0, world_size=2)) == "cpu in float32"


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_bfloat16_only_where_it_is_native(monkeypatch, capability, dtype):
    gpu(monkeypatch, capability)
    assert pick_device().compute_dtype == dtype and pick_device().backend == "nccl"


def test_more_local_ranks_than_gpus(monkeypatch):
    gpu(monkeypatch, (8, 0), count=2)
    assert pick_device(1).device == torch.device("cuda", 1)
    with pytest.raises(RuntimeError, match="--nproc-per-node of at most"):
        pick_device(2)
