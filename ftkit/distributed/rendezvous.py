"""Process groups that survive a restart of torchrun, with errors that name the missing ranks."""

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

POLL = 0.1  # seconds between two reads of the store


class RendezvousError(RuntimeError):
    """The ranks did not come together. The message says who is missing and what to check."""


def init_process_group_with_retry(backend: str, timeout: timedelta) -> None:
    """Initialise the default process group of the ranks that torchrun (or srun, with the same variables) started.

    After a restart torchrun's store still holds the addresses of dead ranks, on which gloo would wait for minutes,
    and its restart counter differs between machines. So rank 0 publishes a fresh name for each attempt and confirms
    it once every rank has answered with a fresh name of its own.

    On one machine `torchrun --standalone` or `--master-port` is enough. On several, use
    `--rdzv-backend c10d --rdzv-endpoint HOST:PORT` and set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on
    each: otherwise a machine that rejoins with a new torchrun waits for an address published before. HOST holds the
    rendezvous: without that machine, all must be started again. A torch without libuv (Windows) needs USE_LIBUV=0.

    Raises RendezvousError if a rank does not join within `timeout`, or the port is in use.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = _open_store(rank, world_size, timeout)
    name = agree_on_attempt(store, rank, world_size, timeout)
    store = dist.PrefixStore(f"ftkit/{name}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def agree_on_attempt(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that all living ranks agree on, new for each attempt."""
    deadline = time.monotonic() + timeout.total_seconds()
    me = uuid.uuid4().hex
    if rank == 0:
        store.set("ftkit/attempt", me)
        answers = [me, *(_wait(store, f"ftkit/{me}/{other}", deadline) for other in range(1, world_size))]
        if None in answers:
            raise RendezvousError(_who_is_missing(answers, timeout))
        store.set(f"ftkit/{me}/closed", " ".join(answers))
        return me
    attempt = None
    while time.monotonic() < deadline:
        # The name may be from an earlier attempt; rank 0 will soon publish a newer one.
        newest = store.get("ftkit/attempt").decode() if store.check(["ftkit/attempt"]) else None
        if newest != attempt:
            attempt = newest
            store.set(f"ftkit/{attempt}/{rank}", me)
        closed = f"ftkit/{attempt}/closed"
        if store.check([closed]) and me in store.get(closed).decode().split():
            return attempt
        time.sleep(POLL)
    here = [other == rank or _answered(store, attempt, other) for other in range(world_size)]
    raise RendezvousError(_who_is_missing([name or None for name in here], timeout))


def _answered(store: dist.Store, attempt: str | None, rank: int) -> bool:
    return attempt is not None and (rank == 0 or store.check([f"ftkit/{attempt}/{rank}"]))


def _wait(store: dist.Store, key: str, deadline: float) -> str | None:
    while not store.check([key]):
        if time.monotonic() > deadline:
            return None
        time.sleep(POLL)
    return store.get(key).decode()


def _who_is_missing(answers: list, timeout: timedelta) -> str:
    missing = [str(rank) for rank, answer in enumerate(answers) if answer is None]
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return (
        f"after {timeout.total_seconds():g} s only {len(answers) - len(missing)} of {len(answers)} ranks have "
        f"joined: missing {', '.join(missing)}. Check that every machine was started, with the same number of "
        f"ranks and the same address, that {address} can be reached from each, and the output of those ranks"
    )


def _open_store(rank: int, world_size: int, timeout: timedelta) -> dist.TCPStore:
    """Connect to torchrun's store, or to one that rank 0 opens."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = dist.TCPStore(
            address,
            port,
            world_size,
            is_master=rank == 0 and not shared,
            timeout=timeout / 2,  # torch tries twice
            wait_for_workers=False,  # `agree_on_attempt` waits, and names who is missing
            use_libuv=os.environ.get("USE_LIBUV", "1") == "1",
        )
    except dist.DistError as error:
        if "EADDRINUSE" in str(error):
            reason = f"port {port} of {address} is in use: end the run that has it, or start with another --master-port"
        else:
            reason = (
                f"after {timeout.total_seconds():g} s nobody answers at {address}:{port}: rank 0 has not joined, or "
                "that address cannot be reached from here. Check that its machine was started, and the firewall"
            )
        raise RendezvousError(reason) from error
    store.set_timeout(timeout)
    return store
