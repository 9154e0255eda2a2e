"""The functions that a notebook calls on a live rank: join the others, run a cell, abort those who wait for it."""

import ast
import contextlib
import gc
import io
import itertools
import os
import socket
import traceback
from dataclasses import dataclass
from datetime import timedelta

CELL = "<cell {}>"  # the file name of the nth cell in tracebacks
CONNECTIONS = "_connections_before_joining"  # a name in the rank's namespace
NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Failure:
    kind: str  # the exception's type
    message: str
    line: int | None  # of the cell
    source: str  # the text of that line
    inside: str  # the function that raised, where it is not the cell itself
    aborted: bool  # the rank only waited for another one, which closed its connections
    timed_out: bool  # it waited for another one until its time was up


@dataclass(frozen=True)
class Outcome:
    """What one rank printed while it ran a cell, and how it failed, if it did."""

    text: str
    failure: Failure | None


def namespace() -> dict:
    """The rank's own variables, where its cells run."""
    import __main__

    return vars(__main__)


def fetch(name: str):
    return namespace()[name]


def join(rank: int, world_size: int, store: str, timeout: float) -> None:
    """Leave the process group, if there is one, and form a new one that meets in the file `store`.

    Sets `rank`, `world_size` and `mesh` (1-D, over all ranks) for the cells to come. timeout: seconds.
    """
    import psutil
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    from ftkit.distributed.device import pick_device

    variables = namespace()
    variables.pop("mesh", None)
    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    if CONNECTIONS not in variables:
        variables[CONNECTIONS] = {connection.fd for connection in tcp_connections(psutil.Process())}
    compute = pick_device(rank, world_size)
    meet = dist.FileStore(store, world_size)
    limit = timedelta(seconds=timeout)
    dist.init_process_group(compute.backend, store=meet, rank=rank, world_size=world_size, timeout=limit)
    mesh = init_device_mesh(compute.device.type, (world_size,))
    variables.update(rank=rank, world_size=world_size, mesh=mesh)


def tcp_connections(process) -> list:
    """A `psutil.Process`'s TCP connections, by the name that psutil 6 gave the method or by that of 5."""
    if hasattr(process, "net_connections"):
        return process.net_connections("tcp")
    return process.connections("tcp")


def hang_up() -> None:
    """Close this rank's connections to the others, so that those who wait for it fail at once.

    Destroying the process group does not close them while a mesh or a sharded model refers to it, and gloo's
    own abort leaves the others waiting.
    """
    import psutil

    before = namespace()[CONNECTIONS]
    for connection in tcp_connections(psutil.Process()):
        if connection.fd not in before and connection.fd >= 0 and connection.raddr:
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fd)) as copy:
                copy.shutdown(socket.SHUT_RDWR)


def run_cell(code: str) -> Outcome:
    """Run `code` among the rank's variables; a last line that is an expression is printed, as in a notebook."""
    printed, failure, file = io.StringIO(), None, CELL.format(next(NUMBERS))
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            body = ast.parse(code, file).body
            last = [body.pop().value] if body and isinstance(body[-1], ast.Expr) else []
            exec(compile(ast.Module(body, []), file, "exec"), namespace())
            for expression in last:
                value = eval(compile(ast.Expression(expression), file, "eval"), namespace())
                if value is not None:
                    print(repr(value))
        except BaseException as error:  # an interrupt and `exit()` too end the cell, not the rank
            failure = describe(error, code, file)
    return Outcome(printed.getvalue(), failure)


def describe(error: BaseException, code: str, file: str) -> Failure:
    """How the cell `code` failed. file: its name in tracebacks, by which it differs from cells that ran before."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    line = lines[-1] if lines else getattr(error, "lineno", None)  # a SyntaxError has no frame
    text = code.splitlines()
    outside = (file, __file__, ast.__file__)
    inside = [frame.name for frame in frames if frame.filename not in outside and frame.name != "wrapper"]
    return Failure(
        kind=type(error).__name__,
        message=str(error),
        line=line,
        source=text[line - 1].strip() if line and line <= len(text) else "",
        inside=inside[-1] if inside else "",
        aborted="Connection closed by peer" in str(error) or "Connection reset by peer" in str(error),
        timed_out="gloo" in str(error) and "Timed out" in str(error),
    )
