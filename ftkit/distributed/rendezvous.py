"""How ranks find each other: a meeting of those that live now, a stated time-out, and who is missing."""

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist

POLL = 0.1  # seconds between two looks at the store


class RendezvousError(RuntimeError):
    """The ranks did not come together. The message says who is missing and what to check."""


def init_process_group_with_retry(backend: str, timeout: timedelta) -> None:
    """Make the default process group of the ranks that torchrun (or srun, with the same variables) has started.

    After a restart torchrun's store still holds the addresses of dead ranks, on which gloo would wait for
    minutes. Restarts are counted on each machine for itself, so that count cannot tell attempts apart. Instead
    rank 0 opens a meeting under a name never used before and closes it when every rank has answered, by
    names of their own that only living ranks can know.

    Launch lines: `torchrun --standalone` and `--master-port` on one machine need nothing more. On several, use
    `--rdzv-backend c10d --rdzv-endpoint HOST:PORT` and set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on
    each: else a machine that comes back with a new torchrun waits for an address that the others published
    before. HOST keeps the rendezvous: when that machine goes, all must be started again. A torch built without
    libuv (Windows) needs USE_LIBUV=0.

    Raises RendezvousError where a rank does not come within `timeout`, or the port is in use.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = _open_store(rank, world_size, timeout)
    name = agree_on_attempt(store, rank, world_size, timeout)
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(f"ftkit/{name}", store),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )


def agree_on_attempt(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """A name that all `world_size` living ranks agree on, new for each attempt."""
    deadline = time.monotonic() + timeout.total_seconds()
    me = uuid.uuid4().hex
    if rank == 0:
        store.set("ftkit/meeting", me)
        answers = [me]
        for other in range(1, world_size):
            answers.append(_wait(store, f"ftkit/{me}/{other}", deadline))
        if None in answers:
            raise RendezvousError(_who_is_missing(answers, timeout))
        store.set(f"ftkit/{me}/closed", " ".join(answers))
        return me
    meeting = None
    while time.monotonic() < deadline:
        # One of dead ranks was closed without this one, or never will be: rank 0 soon opens a newer.
        newest = store.get("ftkit/meeting").decode() if store.check(["ftkit/meeting"]) else None
        if newest != meeting:
            meeting = newest
            store.set(f"ftkit/{meeting}/{rank}", me)
        closed = f"ftkit/{meeting}/closed"
        if store.check([closed]) and me in store.get(closed).decode().split():
            return meeting
        time.sleep(POLL)
    here = [other == rank or _answered(store, meeting, other) for other in range(world_size)]
    raise RendezvousError(_who_is_missing([name or None for name in here], timeout))


def _answered(store: dist.Store, meeting: str | None, rank: int) -> bool:
    return meeting is not None and (rank == 0 or store.check([f"ftkit/{meeting}/{rank}"]))


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
    """Connect to the store: torchrun's, or one that rank 0 opens."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = dist.TCPStore(
            address,
            port,
            world_size,
            is_master=rank == 0 and not agents,
            timeout=timeout / 2,  # torch tries twice
            wait_for_workers=False,  # `meet` waits, and can say for whom
            use_libuv=os.environ.get("USE_LIBUV", "1") == "1",
        )
    except dist.DistError as error:
        if "EADDRINUSE" in str(error):
            said = f"port {port} of {address} is in use: end the run that has it, or start with another --master-port"
        else:
            said = (
                f"after {timeout.total_seconds():g} s nobody answers at {address}:{port}: rank 0 has not joined, or "
                "that address cannot be reached from here. Check that its machine was started, and the firewall"
            )
        raise RendezvousError(said) from error
    store.set_timeout(timeout)
    return store
