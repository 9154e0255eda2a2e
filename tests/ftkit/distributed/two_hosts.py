"""Two hosts on one machine: `two_hosts.py FOLDER PYTHON`, started in network and user namespaces of its own.

This process's network namespace is host A (10.77.0.1); host B (10.77.0.2) is a second one, joined to it by a virtual
cable. On each a torchrun starts two ranks. When rank 3 says that its host is lost, all of B's processes are killed
and a new torchrun is started there, as a cluster does.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

FOLDER, PYTHON = Path(sys.argv[1]), sys.argv[2]
PROGRAM = Path(__file__).with_name("host_ranks.py")
SECONDS = 240


def torchrun(host: str, other: int) -> subprocess.Popen:
    """Start host A's or host B's agent; `other` is a process in B's network namespace."""
    inside = ["nsenter", f"--net=/proc/{other}/ns/net"] if host == "B" else []
    address = {"A": "10.77.0.1", "B": "10.77.0.2"}[host]
    command = [*inside, PYTHON, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=10.77.0.1:29777", "--rdzv-id=two-hosts"]
    # is_host: which machine keeps the rendezvous; torchrun asks name servers for it, and here are none.
    settings = f"keep_alive_interval=1,join_timeout=120,is_host={int(host == 'A')}"
    command += [f"--rdzv-conf={settings}", f"--local-addr={address}"]
    command += ["--max-restarts=3", "--monitor-interval=0.2", str(PROGRAM), str(FOLDER), "trouble"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": f"veth{host}", "OMP_NUM_THREADS": "1"}
    log = (FOLDER / f"host-{host}.log").open("a")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def cable(other: int) -> None:
    """Join the two network namespaces."""
    inside = f"nsenter --net=/proc/{other}/ns/net"
    for line in (
        "ip link set lo up",
        f"ip link add vethA type veth peer name vethB netns {other}",
        "ip addr add 10.77.0.1/24 dev vethA",
        "ip link set vethA up",
        f"{inside} ip link set lo up",
        f"{inside} ip addr add 10.77.0.2/24 dev vethB",
        f"{inside} ip link set vethB up",
    ):
        subprocess.run(line.split(), check=True)


def end(process: int) -> None:
    """Kill all processes of a host, but for the one given and this one: those in its network namespace.

    A process may start another one meanwhile, so look until none is left.
    """
    network = os.readlink(f"/proc/{process}/ns/net")
    while found := [p for p in psutil.pids() if p not in (process, os.getpid()) and network_of(p) == network]:
        for each in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        time.sleep(0.05)


def network_of(process: int) -> str:
    """Empty for one that has ended, for a zombie, and for other people's."""
    try:
        return os.readlink(f"/proc/{process}/ns/net")
    except OSError:
        return ""


def main() -> None:
    holder = subprocess.Popen(["unshare", "--net", "sleep", "600"], stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        cable(holder.pid)
        (FOLDER / "cable").touch()
        a, b = torchrun("A", holder.pid), torchrun("B", holder.pid)
        lost, deadline = False, time.monotonic() + SECONDS
        while a.poll() is None and time.monotonic() < deadline:
            if not lost and (FOLDER / "host-lost").exists():
                lost = True
                end(holder.pid)
                b.wait()
                b = torchrun("B", holder.pid)
            time.sleep(0.1)
        codes = a.poll(), b.wait(30)
        sys.exit(f"exit codes of the two agents: {codes}" if codes != (0, 0) else 0)
    finally:
        end(holder.pid), end(os.getpid())
        holder.kill()


main()
