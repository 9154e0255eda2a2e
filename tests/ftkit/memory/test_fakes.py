"""What is relied on of torch's fake tensors, fake process group and FSDP's own tensors, which a version may change."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ftkit._compat import fake_ranks, fake_tensors, fill_from_meta


def test_fake_tensors_have_storages_of_a_size_and_no_memory():
    with fake_tensors():
        huge = torch.empty(1 << 40)
        assert huge.untyped_storage().nbytes() == 4 << 40
        assert (huge + 1).untyped_storage()._cdata != huge.untyped_storage()._cdata
    assert torch.ones(2).sum() == 2  # and outside, tensors are real again


def test_fake_ranks_form_a_mesh_and_go():
    with fake_ranks(1024):
        mesh = init_device_mesh("cpu", (2, 512), mesh_dim_names=("dp_replicate", "dp_shard"))
        assert (dist.get_rank(), dist.get_world_size(), mesh["dp_shard"].size()) == (0, 1024, 512)
    assert not dist.is_initialized()
    with pytest.raises(ZeroDivisionError), fake_ranks(2):
        raise ZeroDivisionError
    assert not dist.is_initialized()


def test_filling_keeps_ties_and_shards():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False), nn.Linear(10, 10))
    model[1].weight = model[0].weight
    with fake_ranks(4):
        mesh = init_device_mesh("cpu", (4,))
        fully_shard(model, mesh=mesh)
        with fake_tensors():
            fill_from_meta(model)
            assert model[1].weight is model[0].weight
            assert model[0].weight.to_local().shape == (3, 10)  # ceil(10 / 4) rows on rank 0
            assert not model[2].weight.to_local().is_meta
            model(torch.empty(2, 10)).sum().backward()
            assert model[0].weight.grad.to_local().shape == (3, 10)
