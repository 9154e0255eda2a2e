"""Choosing by bits against `torch.where`, for every dtype, with all that a float can be."""

import pytest
import torch

from ftkit.child_tuning.update import copy_masked_, zero_unmasked_


def awkward(dtype: torch.dtype, seed: int) -> torch.Tensor:
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-40])
    return special[torch.randint(0, 6, (7, 50), generator=torch.Generator().manual_seed(seed))].to(dtype)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("transposed", [False, True])
def test_selection_equals_where_bit_by_bit(dtype, transposed):
    values, new = awkward(dtype, 0), awkward(dtype, 1)
    keep = torch.rand(7, 50, generator=torch.Generator().manual_seed(2)) < 0.4
    if transposed:
        values, new = (t.t().contiguous().t() for t in (values, new))
    cleared, copied = values.clone(), values.clone()
    zero_unmasked_(cleared, keep)
    copy_masked_(copied, new.clone(), keep)
    assert torch.equal(bits(cleared), torch.where(keep, bits(values), 0))
    assert torch.equal(bits(copied), torch.where(keep, bits(new), bits(values)))
