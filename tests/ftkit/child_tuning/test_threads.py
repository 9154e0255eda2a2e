"""Blocks on several threads: nothing but the time may differ, and torch's own threads stay as they were."""

import os
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftkit.child_tuning import ChildTuningAdamW, update


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


SIZES = (700_000, 100, 300_000, 1_000_001, 200_000)  # together enough to be shared


def train(sizes: tuple[int, ...] = SIZES) -> list[torch.Tensor]:
    weights = [torch.nn.Parameter(torch.ones(n)) for n in sizes]
    opt = ChildTuningAdamW([(f"w{i}", weight) for i, weight in enumerate(weights)])
    for step in range(3):
        for weight in weights:
            weight.grad = torch.randn(len(weight), generator=torch.Generator().manual_seed(step))
        opt.step()
    return weights


def batches(count: int, elements: int) -> list[list[update.Block]]:
    """So many batches, of a block each, of together enough elements to be shared."""
    return [[update.Block(grad, grad, [], None, 0, elements)] for grad in torch.empty(count, elements)]


def test_threads_change_no_bit(three_threads):
    several = train()
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(several, train(), strict=True))


@given(st.lists(st.integers(0, 900), max_size=6), st.integers(1, 4), st.integers(1, 8))
def test_parts_are_all_elements_in_order(sizes, threads, aligned):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(update, "BLOCK_ELEMENTS", aligned * 64)
        found = list(update.parts(sizes, threads))
    where = [(vector, i) for part in found for vector, start, stop in part for i in range(start, stop)]
    assert where == [(vector, i) for vector, size in enumerate(sizes) for i in range(size)]
    assert all(sum(stop - start for _, start, stop in part) <= aligned * 64 for part in found)
    assert all(start % 64 == 0 and start < stop for part in found for _, start, stop in part)


def test_every_thread_gets_equally_many_parts_of_about_one_size():
    parts = [sum(stop - start for _, start, stop in part) for part in update.parts([1_000_000] * 10, 3)]
    assert len(parts) == 21 and max(parts) - min(parts) < 10_000


def test_torch_keeps_its_threads_and_starts_none_inside(three_threads):
    seen = []
    update.parallel_map(lambda _: seen.append(torch.get_num_threads()), batches(30, 100_000))
    assert len(seen) == 30 and set(seen) == {1}
    assert torch.get_num_threads() == 3


def test_little_work_is_done_by_the_thread_that_asks(three_threads):
    seen = []
    update.parallel_map(lambda _: seen.append(threading.current_thread()), batches(30, 100))
    assert len(seen) == 30 and set(seen) == {threading.current_thread()}


def test_errors_come_through(three_threads):
    with pytest.raises(ZeroDivisionError):
        update.parallel_map(lambda batch: 1 / 0, batches(3, 1_000_000))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_makes_threads_of_its_own(three_threads):
    update.parallel_map(lambda _: None, batches(4, 1_000_000))
    child = os.fork()
    if child == 0:
        done = []
        update.parallel_map(done.append, batches(4, 1_000_000))
        os._exit(0 if len(done) == 4 else 1)
    assert os.waitpid(child, 0)[1] == 0
