"""Which mesh a launch can have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.distributed.mesh import ParallelDims


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.sampled_from([None, 0, 1, 2]))
def test_what_is_left_out_is_found(replicate, shard, tp, left_out):
    sizes = [replicate, shard, tp]
    told = [-1 if i == left_out else size for i, size in enumerate(sizes)]
    text = ",".join(map(str, told))
    assert ParallelDims.parse(text, replicate * shard * tp) == ParallelDims(*sizes)


def test_empty_is_fsdp_over_all_ranks():
    assert ParallelDims.parse("", 6) == ParallelDims(1, 6, 1) and str(ParallelDims(1, 6, 1)) == "1,6,1"


@pytest.mark.parametrize("text", ["2", "1,2", "1,-1,-1", "1,0,1", "a,b,c", "1,2,-2", "1,1,1,1"])
def test_what_is_no_mesh_is_told_its_form(text):
    with pytest.raises(ValueError, match="takes dp_replicate,dp_shard,tp"):
        ParallelDims.parse(text, 2)


@pytest.mark.parametrize(("text", "world_size"), [("1,3,1", 4), ("1,-1,3", 4), ("2,2,2", 4), ("1,1,1", 2)])
def test_a_number_of_ranks_that_does_not_fit(text, world_size):
    with pytest.raises(ValueError, match=rf"{world_size} are started: change --mesh"):
        ParallelDims.parse(text, world_size)
