"""Ranks meet those that live now; who does not come is named in time."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from ftkit.distributed.launch import free_port
from ftkit.distributed.rendezvous import RendezvousError, agree_on_attempt, init_process_group_with_retry

SOON = timedelta(seconds=2)


@pytest.fixture
def launched(monkeypatch):
    """The environment that a launcher gives to a rank, without an agent's store."""

    def launch(rank: int, world_size: int, port: int | None = None) -> int:
        port = port or free_port()
        values = {"RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
        return port

    launch(0, 2)
    return launch


def together(store, ranks, world_size, timeout=timedelta(seconds=20)):
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda rank: agree_on_attempt(store, rank, world_size, timeout), ranks))


def test_all_agree_on_a_name_and_each_attempt_has_another():
    store = dist.HashStore()
    names = [together(store, range(3), 3) for _ in range(3)]
    assert all(len(set(attempt)) == 1 for attempt in names)
    assert len({attempt[0] for attempt in names}) == 3


def test_late_ranks_do_not_join_an_earlier_attempt():
    """The store that torchrun keeps: a closed attempt, then one which rank 0 opened and died in."""
    store = dist.HashStore()
    (closed,) = set(together(store, range(2), 2))
    store.set("ftkit/attempt", "opened-and-left")
    store.set("ftkit/opened-and-left/1", "a-dead-rank")
    with ThreadPoolExecutor() as pool:
        early = pool.submit(agree_on_attempt, store, 1, 2, timedelta(seconds=20))
        time.sleep(0.5)
        assert not early.done()
        opened = agree_on_attempt(store, 0, 2, timedelta(seconds=20))
        assert early.result() == opened and opened not in (closed, "opened-and-left")


def test_a_rank_that_never_joins_is_named_in_time(launched):
    launched(0, 3)
    start = time.monotonic()
    with pytest.raises(RendezvousError, match="after 2 s only 1 of 3 ranks have joined: missing 1, 2"):
        init_process_group_with_retry("gloo", SOON)
    assert time.monotonic() - start < 15 and not dist.is_initialized()


def test_the_others_say_the_same(launched):
    launched(0, 3)
    store, said = dist.HashStore(), {}

    def come(rank):
        try:
            agree_on_attempt(store, rank, 3, SOON)
        except RendezvousError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(said) == {0, 2}
    assert all("only 2 of 3 ranks have joined: missing 1. Check" in words for words in said.values())


def test_nobody_opens_the_store(launched):
    port = launched(1, 2)
    with pytest.raises(RendezvousError, match=f"after 2 s nobody answers at 127.0.0.1:{port}: rank 0"):
        init_process_group_with_retry("gloo", SOON)


def test_a_port_in_use_is_named(launched):
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = launched(0, 2, other.getsockname()[1])
        with pytest.raises(RendezvousError, match=f"port {port} of 127.0.0.1 is in use: .*another --master-port"):
            init_process_group_with_retry("gloo", SOON)
