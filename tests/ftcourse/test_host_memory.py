"""The peak is that of the time between, also of what is gone at the end, and not of mapped files."""

import time

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from ftcourse.instruments import peak_uss

SIZE = 64_000_000  # bytes


def test_a_tensor_that_is_gone_at_the_end_is_counted():
    with peak_uss() as peak:
        _need(SIZE)
    assert 0.95 * SIZE < peak[0] < 1.3 * SIZE
    with peak_uss() as peak:
        pass
    assert peak[0] < 0.1 * SIZE


def test_memory_that_the_allocator_kept_does_not_hide_what_is_needed():
    # Freed blocks below one that lives stay with the process, and a later tensor would be laid into them unseen.
    blocks = [torch.ones(2**14) for _ in range(2 * SIZE // 2**16)]
    del blocks[:-1]
    with peak_uss() as peak:
        _need(SIZE)
    assert 0.95 * SIZE < peak[0] < 1.3 * SIZE


def _need(size: int) -> None:
    tensor = torch.ones(size // 4)
    tensor.square_()
    time.sleep(0.2)  # on a busy machine two looks may be far apart


def test_pages_of_a_file_are_not_counted(tmp_path):
    if not hasattr(psutil.Process().memory_info(), "shared"):
        pytest.skip("only Linux tells pages of files apart")
    save_file({"x": torch.ones(SIZE // 4)}, tmp_path / "x.safetensors")
    with peak_uss() as peak:
        assert load_file(tmp_path / "x.safetensors")["x"].sum() > 0  # every page is touched
    assert peak[0] < 0.1 * SIZE
