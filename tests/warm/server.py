"""Imports what programs or kernels need, and then forks one for each launcher that asks.

    python server.py kernel|program SOCKET OWNER

It ends with the process OWNER, and when its socket is removed. Single-threaded throughout, since only the thread that
forks lives on in a fork.
"""

import array
import atexit
import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import random
import select
import signal
import socket
import sys
import threading
import types

# Not datasets: pyarrow, which it imports, starts a thread.
PROGRAM = [
    *(
        "torch",
        "torch.distributed.run",
        "torch.distributed.fsdp",
        "torch.distributed.checkpoint",
        "numpy.random",
    ),
    *("torch.distributed.tensor.parallel", "torch.distributed.checkpoint.state_dict", "torch._dynamo"),
    *("transformers", "transformers.models.llama.modeling_llama", "transformers.models.qwen3.modeling_qwen3"),
    *("transformers.generation.utils", "peft", "safetensors.torch", "jinja2", "psutil", "yaml"),
    *("ftkit", "ftkit.finetune.train", "ftkit.memory", "ftkit.adapters", "ftkit.chat", "ftkit.child_tuning"),
    "torch.testing._internal.distributed.fake_pg",
    *("nbformat", "hypothesis"),  # the workers of pytest-xdist are forks, too
]
KERNEL = [
    "ipykernel.zmqshell",
    "ipykernel.kernelapp",
    "ipywidgets",
    "matplotlib.pyplot",
    "tqdm.auto",
    "ipyparallel",  # not its apps: they take the folder in which they are imported for that of their process
]
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class CurrentStream:
    """Stands for `sys.stdout` or `sys.stderr` where a module keeps it on import: as a fork has it when it writes."""

    def __init__(self, name: str):
        self._name, self._first = name, getattr(sys, name)

    def __getattr__(self, attribute: str):
        now = getattr(sys, self._name)
        return getattr(self._first if now is self else now, attribute)


def serve(address: str, owner: int) -> tuple[dict, list[int]]:
    """Answer launchers for ever. Returns only in a fork: what it is to run, and the open files it was sent."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".new")
    listener.listen(64)
    os.rename(address + ".new", address)  # whoever sees it can connect
    alarm, alarmed = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(alarmed)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[socket.socket, int] = {}  # connection -> process
    while os.path.exists(address) and _lives(owner):
        ready, _, _ = select.select([listener, alarm, *running], [], [], 2.0)
        for source in ready:
            if source is listener:
                connection, _ = listener.accept()
                try:
                    request, files = _receive(connection)
                except (OSError, ValueError):  # a launcher that was killed in the middle
                    connection.close()
                    continue
                if not (process := os.fork()):
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for own in (listener, connection, *running):
                        own.close()
                    os.close(alarm), os.close(alarmed)
                    return request, files
                for file in files:
                    os.close(file)
                running[connection] = process
            elif source is alarm:
                os.read(alarm, 4096)
                _report_the_dead(running)
            elif source in running:
                _pass_on(source, running)
    for process in running.values():
        os.kill(process, signal.SIGKILL)
    sys.exit(0)


def _lives(owner: int) -> bool:
    try:
        os.kill(owner, 0)
    except ProcessLookupError:
        return False
    return True


def _receive(connection: socket.socket) -> tuple[dict, list[int]]:
    files = array.array("i")
    head, rights, _, _ = connection.recvmsg(8, socket.CMSG_LEN(253 * files.itemsize))
    for _, _, data in rights:
        files.frombytes(data[: len(data) - len(data) % files.itemsize])
    size, text = int.from_bytes(head, "little"), b""
    while len(text) < size:
        if not (part := connection.recv(size - len(text))):
            raise ValueError("the launcher is gone")
        text += part
    return json.loads(text), list(files)


def _report_the_dead(running: dict[socket.socket, int]) -> None:
    connections = {process: connection for connection, process in running.items()}
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not process:
            return
        connection = connections[process]
        del running[connection]
        with contextlib.suppress(OSError):
            connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, "little", signed=True))
        connection.close()


def _pass_on(connection: socket.socket, running: dict[socket.socket, int]) -> None:
    """Send the fork the signals that its launcher got. A launcher that is gone was killed, and its fork is, too."""
    try:
        signals = connection.recv(64)
    except OSError:
        signals = b""
    for number in signals or [signal.SIGKILL]:
        os.kill(running[connection], number)
    if not signals:
        os.waitpid(running.pop(connection), 0)
        connection.close()


def become(request: dict, files: list[int]) -> None:
    """Make this fork what the launcher would have been: files, folder, environment, signals, streams, chance."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # it ends with its server, however that ends
    namespaces = len(files) - len(request["files"])
    for file in files[:namespaces]:
        enter(file)
    files = files[namespaces:]
    moved = [os.dup2(file, 500 + n) for n, file in enumerate(files)]
    for file in files:
        os.close(file)
    for file, wanted in zip(moved, request["files"], strict=True):
        os.dup2(file, wanted, inheritable=True)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    show(request["environment"])
    os.chdir(request["folder"])
    how = signal.SIG_IGN if request["ignores_interrupts"] else signal.default_int_handler
    signal.signal(signal.SIGINT, how)
    at_once = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(open(0, "rb", closefd=False), "utf-8")  # noqa: SIM115
    sys.stdout = sys.__stdout__ = text_stream(1, "strict", at_once)
    sys.stderr = sys.__stderr__ = text_stream(2, "backslashreplace", at_once)
    sys.excepthook = without_this_file
    sys.executable = request["executable"]
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def enter(namespace: int) -> None:
    """os.setns, which Python has from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, 0):
        raise OSError(ctypes.get_errno(), "cannot enter the launcher's namespace")
    os.close(namespace)


def show(environment: dict[str, str]) -> None:
    """Let other processes see this environment in /proc/PID/environ: it shows where the server's was at its start."""
    with open("/proc/self/stat") as file:
        start, end = map(int, file.read().rpartition(")")[2].split()[47:49])  # env_start and env_end
    text = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in environment.items())
    assert len(text) < end - start, "start the server with more room"
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def text_stream(number: int, errors: str, at_once: bool) -> io.TextIOWrapper:
    raw = io.FileIO(number, "w", closefd=False)
    lines = errors != "strict" or raw.isatty()
    buffer = raw if at_once else io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, "utf-8", errors, line_buffering=lines, write_through=at_once)


def without_this_file(kind: type, error: BaseException, trace: types.TracebackType | None) -> None:
    while trace and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    sys.__excepthook__(kind, error.with_traceback(trace), trace)


def run(arguments: list[str]) -> None:
    """What `python ARGUMENTS…` does."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__builtins__ = __builtins__
    if arguments[0] == "-m":
        import runpy

        sys.argv, sys.path[0] = ["-m", *arguments[2:]], os.getcwd()
        sys.modules.pop(arguments[1], None)  # it is going to be __main__; imported before, runpy would warn
        runpy._run_module_as_main(arguments[1])
        return
    if arguments[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *arguments[2:]], ""
        code = compile(arguments[1], "<string>", "exec")
    else:
        path = os.path.abspath(arguments[0])
        sys.argv, sys.path[0] = arguments, os.path.dirname(path)
        main.__file__ = path
        with open(path, "rb") as file:
            code = compile(file.read(), path, "exec")
    exec(code, vars(main))


def code_of(arguments: list[str]) -> int:
    """Run, and return the exit code."""
    try:
        run(arguments)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        return 1
    return 0


def end(code: int) -> None:
    """End as an interpreter does, but for looking through a million objects once more, which takes 1.5 s."""
    threading._shutdown()  # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more, or it was closed
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    kind, address, owner = sys.argv[1], sys.argv[2], int(sys.argv[3])
    sys.stdout, sys.stderr = CurrentStream("stdout"), CurrentStream("stderr")
    if kind == "kernel":
        os.environ["JPY_PARENT_PID"] = "1"  # ipykernel reads it on import: no parent to watch
        os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    for name in KERNEL if kind == "kernel" else PROGRAM:
        try:
            importlib.import_module(name)
        except ImportError:
            print(f"{name} is not here", file=sys.__stderr__)
    with contextlib.suppress(KeyError, AttributeError):  # compiles 900 patterns, for the first model that is loaded
        sys.modules["transformers.conversion_mapping"].get_checkpoint_conversion_mapping("llama")
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: a fork would lose all but one"
    gc.collect()
    gc.freeze()  # so that forks share these objects
    request, files = serve(address, owner)
    become(request, files)
    end(code_of(request["arguments"]))
