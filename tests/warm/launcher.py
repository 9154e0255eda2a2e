"""Poses as Python: asks the server for a fork that runs the same arguments, and ends as it ends.

`install` writes this file into a folder of its own, as the executable `python`, beside `settings.json`. It runs with
`-I -S` in about 15 ms. What the server cannot do, it leaves to the real interpreter.
"""

import array
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

FOLDER = os.path.dirname(os.path.realpath(sys.argv[0]))
MARKS = ("FTKIT_RUN", "IPP_PROFILE_DIR")  # by which guards know what they are to end
STARTING = 120  # seconds that a server may take to import everything
JOINED = ("user", "net")  # namespaces that the fork enters; the first permits the second
NAMESPACE = "/proc/self/ns/"
IN_IPYTHON = ("ipykernel_launcher", "ipyparallel.")  # modules that need what a kernel needs
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main() -> None:
    with open(f"{FOLDER}/settings.json") as file:
        settings = json.load(file)
    arguments, environment = sys.argv[1:], dict(os.environ)
    own = {
        k: v
        for k, v in environment.items()
        if re.match(settings["read_on_import"], k) and k not in settings["harmless"]
    }
    while arguments[:1] in (["-u"], ["-Xfrozen_modules=off"]):
        environment |= {"PYTHONUNBUFFERED": "1"} if arguments.pop(0) == "-u" else {}
    runs = arguments and (arguments[0] in ("-m", "-c") or not arguments[0].startswith("-"))
    own_namespaces = {name: os.readlink(NAMESPACE + name) for name in settings["namespaces"]}
    elsewhere = {name for name, here in settings["namespaces"].items() if own_namespaces[name] != here}
    measured = arguments[:2] == ["-m", "ftcourse.starter"]  # memory of its own, which forks share
    kind = "kernel" if arguments[:1] == ["-m"] and arguments[1].startswith(IN_IPYTHON) else "program"
    # A server that were started here would be elsewhere itself.
    unreachable = elsewhere - {*JOINED} or (elsewhere and not os.path.exists(f"{FOLDER}/{kind}.socket"))
    if own != settings["environment"] or not runs or unreachable or measured:
        os.execv(settings["python"], [settings["python"], *sys.argv[1:]])
    files = inherited()  # before this process opens any of its own
    request = {"arguments": arguments, "environment": environment, "folder": os.getcwd(), "files": files}
    request |= {"executable": sys.argv[0], "ignores_interrupts": INTERRUPTS_IGNORED}
    entered = [os.open(NAMESPACE + name, os.O_RDONLY) for name in JOINED if name in elsewhere]
    wait_for(ask(kind, settings, request, entered))


def inherited() -> list[int]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.get_inheritable(int(name)):
                found.append(int(name))
        except OSError:
            pass  # the folder that is being listed
    return found


def ask(kind: str, settings: dict, request: dict, entered: list[int]) -> socket.socket:
    """Send the request, with the open files, to the server of this kind; start it where it is not there yet.

    The first of the files are the namespaces to enter.
    """
    connection, address = socket.socket(socket.AF_UNIX), f"{FOLDER}/{kind}.socket"
    try:
        connection.connect(address)
    except OSError:
        with open(f"{FOLDER}/{kind}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.path.exists(address):
                start(kind, settings, address)
        connection.connect(address)
    text = json.dumps(request).encode()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", entered + request["files"]))]
    connection.sendmsg([len(text).to_bytes(8, "little")], rights)
    connection.sendall(text)
    for file in request["files"]:  # whoever reads from the fork waits for the last one to close
        os.dup2(os.open(os.devnull, os.O_RDWR), file)
    return connection


def start(kind: str, settings: dict, address: str) -> None:
    """Start a server. That of kernels is itself a fork of that of programs, and imports only what it lacks."""
    python = settings["python"] if kind == "program" else f"{FOLDER}/python"
    command = [python, settings["server"], kind, address, str(settings["owner"])]
    # Without the marks of whoever asks first: else the guard that ends its processes would end the server.
    environment = {k: v for k, v in os.environ.items() if k not in settings["harmless"] and k not in MARKS}
    if kind == "program":
        environment["FTKIT_ROOM"] = "-" * 65536  # where its forks, and theirs, write their environments
    with open(f"{FOLDER}/{kind}.log", "w+") as log:
        how = {
            "stdin": subprocess.DEVNULL,
            "stdout": log,
            "stderr": log,
            "start_new_session": True,
            "cwd": "/",
        }
        server = subprocess.Popen(command, env=environment, **how)
        deadline = time.monotonic() + STARTING
        while not os.path.exists(address):
            if server.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                sys.exit(f"the warm {kind} server did not start:\n{log.read()}")
            time.sleep(0.05)


def wait_for(connection: socket.socket) -> None:
    """Forward signals until the fork ends; end in the same way."""
    for number in FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda received, _: connection.sendall(bytes([received])))
    answer = connection.recv(8)
    if not answer:
        sys.exit("the warm server is gone")
    code = int.from_bytes(answer, "little", signed=True)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code)


INTERRUPTS_IGNORED = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
main()
