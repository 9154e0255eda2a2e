"""How ranks find each other: a store of their own for each attempt, and a stated time-out."""

import os
from datetime import timedelta

import torch.distributed as dist


def join(backend: str, timeout: timedelta) -> None:
    """Make the default process group of the ranks that torchrun has started.

    After a restart torchrun's store still holds the addresses of dead ranks, on which gloo would wait for minutes:
    each attempt therefore gets a prefix of its own.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size,
        is_master=rank == 0 and not agents,
        timeout=timeout,
        multi_tenant=not agents,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(f"attempt-{attempt}", store),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
    )
