"""Blocks on several threads: nothing but the time may differ, and torch's own threads stay as they were."""

import os

import pytest
import torch

from ftkit.child_tuning import ChildTuningAdamW, update


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def train() -> list[torch.Tensor]:
    weights = [torch.nn.Parameter(torch.ones(n)) for n in (700_000, 100, 300_000)]
    opt = ChildTuningAdamW([(f"w{i}", weight) for i, weight in enumerate(weights)])
    for step in range(3):
        for weight in weights:
            weight.grad = torch.randn(len(weight), generator=torch.Generator().manual_seed(step))
        opt.step()
    return weights


def test_threads_change_no_bit(three_threads):
    several = train()
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(several, train(), strict=True))


def test_torch_keeps_its_threads_and_starts_none_inside(three_threads):
    seen = []
    update.parallel_map(lambda _: seen.append(torch.get_num_threads()), range(30), True)
    assert len(seen) == 30 and set(seen) == {1}
    assert torch.get_num_threads() == 3


def test_errors_come_through(three_threads):
    with pytest.raises(ZeroDivisionError):
        update.parallel_map(lambda i: 1 / i, [2, 1, 0], True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_makes_threads_of_its_own(three_threads):
    update.parallel_map(lambda _: None, range(4), True)
    child = os.fork()
    if child == 0:
        done = []
        update.parallel_map(done.append, range(4), True)
        os._exit(0 if len(done) == 4 else 1)
    assert os.waitpid(child, 0)[1] == 0
