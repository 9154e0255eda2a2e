"""The error messages of a failed rank: which rank, in which line of the cell, and which ranks only waited for it."""

from .worker import Failure

AGAIN = "Start again: ranks.stop(), then ranks = start_ranks(...)"
RAISES = "--raises"
REINITIALISED = (
    "The process group was re-initialised: the ranks' variables are kept, but what was built on the old mesh,\n"
    "such as a sharded model, has to be built again."
)


class RankError(RuntimeError):
    """A rank failed, or is gone. In a notebook it shows as its message alone, without the frames of ftkit."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


def gone(rank: int) -> str:
    return f"rank {rank}'s process has ended: it was killed, or memory ran out. {AGAIN}"


def not_started() -> str:
    return "no ranks have been started yet: run the cell with ranks = start_ranks(...) first, then this one again"


def refused_options(options: str) -> str:
    return (
        f"%%px takes no options but {RAISES}, and this has {options}: every cell runs on all ranks, because a "
        "collective waits for all of them; write `if rank == 0:` inside the cell instead"
    )


def named(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {' and '.join(map(str, ranks))}"


def is_one_mistake(failures: dict[int, Failure], world_size: int) -> bool:
    """Whether all ranks failed alike and none in a collective, so that their process group is still usable."""
    waited = any(failure.aborted or failure.timed_out for failure in failures.values())
    places = {(failure.kind, failure.line) for failure in failures.values()}
    return len(failures) == world_size and len(places) == 1 and not waited


def report(failures: dict[int, Failure], world_size: int) -> str:
    """The message of a RankError. failures: rank -> how it failed."""
    own = {rank: f for rank, f in failures.items() if not f.aborted} or failures
    alike: dict[Failure, list[int]] = {}
    for rank, failure in own.items():
        alike.setdefault(failure, []).append(rank)
    parts = []
    for failure, ranks in alike.items():
        where = f" in line {failure.line} of the cell:\n    {failure.source}" if failure.line else ""
        inside = f"\n  inside {failure.inside}" if failure.inside else ""
        if failure.timed_out:
            others = [rank for rank in range(world_size) if rank not in own]
            why = f"\nwaited in {failure.inside} until its time was up"
            why += f"; {named(others)} never came there" if others else ""
        else:
            why = f"{inside}\n{failure.kind}: {failure.message}"
        parts.append(f"{named(ranks)} failed{where}{why}")
    for rank in sorted(set(failures) - set(own)):
        waited = failures[rank]
        parts.append(f"rank {rank} waited in {waited.inside} (line {waited.line}) and was aborted.")
    if not is_one_mistake(failures, world_size):
        parts.append(REINITIALISED)
    return "\n".join(parts)
