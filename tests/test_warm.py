"""A warm start is like a cold one: the same program, run by both, says and does the same."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from jupyter_client import run_kernel

from ftcourse import runs
from ftcourse.live_ranks import cluster, guard
from tests import warm

pytestmark = [pytest.mark.thorough, pytest.mark.skipif(sys.executable == warm.COLD, reason="programs start cold here")]

ABOUT_ITSELF = """
import json, os, random, signal, sys, threading
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "folder": os.getcwd(), "name": __name__, "input": sys.stdin.read(),
    "file": globals().get("__file__"), "environment": dict(os.environ), "threads": threading.active_count(),
    "interrupt": str(signal.getsignal(signal.SIGINT)), "seen": sorted(k for k in globals() if k[:2] != "__"),
    "files": sorted(int(n) for n in os.listdir("/proc/self/fd"))[:-1], "encoding": sys.stdout.encoding,
}))
print("to stderr", file=sys.stderr)
sys.exit(5)
"""


def both(arguments: list[str], **options) -> list[subprocess.CompletedProcess]:
    common = {"capture_output": True, "text": True, "timeout": 120, **options}
    return [subprocess.run([python, *arguments], **common) for python in (sys.executable, warm.COLD)]


@pytest.mark.parametrize("how", ["-c", "-m", "file"])
@pytest.mark.parametrize("ignored", [False, True], ids=["heard", "ignored"])
def test_a_program_finds_itself_the_same(tmp_path, how, ignored):
    (tmp_path / "itself.py").write_text(ABOUT_ITSELF)
    (tmp_path / "read").write_text("a file that the caller has open")
    arguments = {"-c": ["-c", ABOUT_ITSELF], "-m": ["-m", "itself"], "file": ["itself.py"]}[how]

    def ignore():
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    with (tmp_path / "read").open() as file:
        options = {"cwd": tmp_path, "input": "given", "pass_fds": [file.fileno()], "preexec_fn": ignore}
        options["env"] = os.environ | {"FTKIT_MODEL": "mine"}
        hot, cold = both([*arguments, "a", "b c"], **options)
    assert (hot.returncode, hot.stderr) == (cold.returncode, cold.stderr) == (5, "to stderr\n")
    said = [json.loads(done.stdout) for done in (hot, cold)]
    for each in said:
        each["environment"].pop("_", None)
    assert said[0] == said[1] and said[0]["environment"]["FTKIT_MODEL"] == "mine"


def test_an_error_is_reported_the_same(tmp_path):
    (tmp_path / "fails.py").write_text("def f():\n    1 / 0\n\nf()\n")
    hot, cold = both(["fails.py"], cwd=tmp_path)
    assert hot.returncode == cold.returncode == 1 and hot.stderr == cold.stderr
    assert "ZeroDivisionError" in hot.stderr


def test_modules_are_there_already_and_chance_is_not_shared():
    code = "import sys; print('torch' in sys.modules); import random; print(random.random())"
    first, cold = both(["-c", code])
    second, _ = both(["-c", code])
    assert first.stdout.startswith("True") and cold.stdout.startswith("False")
    assert first.stdout != second.stdout


def test_other_settings_that_are_read_on_import_start_cold():
    code = "import sys; print('torch' in sys.modules)"
    done, _ = both(["-c", code], env=os.environ | {"OMP_NUM_THREADS": "3"})
    assert done.stdout == "False\n"
    assert both(["-W", "error", "-c", code])[0].stdout == "False\n"


def inside(*namespaces: str) -> list[str]:
    """The command's beginning; skips the test where it is not permitted here."""
    command = ["unshare", "--user", "--map-root-user", *namespaces]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"]).returncode:
        pytest.skip("no other namespaces here")
    return command


def test_other_mounts_start_cold():
    """A fork would have the server's, and could not enter these."""
    command = [*inside("--mount"), sys.executable, "-c", "import sys; print('torch' in sys.modules)"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("also", [[], ["--net"]])
def test_another_namespace_of_users_and_network_is_entered(also):
    """Which one it is, a child of the program's own says, and the shell that has started it."""
    code = "import os, sys; print('torch' in sys.modules, flush=True); os.system(sys.argv[1])"
    where = "readlink /proc/self/ns/user /proc/self/ns/net; id -u"
    subprocess.run([sys.executable, "-c", "pass"])  # a server must be there
    script = f"{where}; {sys.executable} -c {shlex.quote(code)} {shlex.quote(where)}"
    said = subprocess.run([*inside(*also), "sh", "-c", script], capture_output=True, text=True)
    lines = said.stdout.splitlines()
    assert lines[3] == "True" and lines[:3] == lines[4:] and lines[2] == "0", said
    assert lines[0] != os.readlink("/proc/self/ns/user")
    assert (lines[1] != os.readlink("/proc/self/ns/net")) == bool(also)


def test_other_processes_see_its_environment():
    for python in (sys.executable, warm.COLD):
        own = {"PATH": "/nowhere", "FTKIT_WARM": os.environ["FTKIT_WARM"], "MARK": "é" * 3000}
        own |= warm.read_on_import(dict(os.environ))
        with subprocess.Popen([python, "-c", SLEEPS], stdout=subprocess.PIPE, text=True, env=own) as process:
            assert fork_of(process).environ() == own
            process.kill()


def fork_of(process: subprocess.Popen) -> psutil.Process:
    return psutil.Process(int(process.stdout.readline()))


SLEEPS = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_both(number):
    codes = []
    for python in (sys.executable, warm.COLD):
        process = subprocess.Popen(
            [python, "-c", SLEEPS],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        fork = fork_of(process)
        process.send_signal(number)
        codes.append(process.wait(20))
        deadline = time.monotonic() + 20
        while fork.is_running() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not fork.is_running()
        process.communicate()
    assert codes[0] == codes[1]


def test_the_end_of_a_fork_is_its_launchers():
    codes = [done.returncode for done in both(["-c", "import os; os.kill(os.getpid(), 9)"])]
    assert codes == [-9, -9]


@pytest.fixture
def another(tmp_path):
    """The environment of servers of one's own."""
    (tmp_path / "python").write_text(Path(os.environ["FTKIT_WARM"], "python").read_text())
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "settings.json").write_text(Path(os.environ["FTKIT_WARM"], "settings.json").read_text())
    return os.environ | {"FTKIT_WARM": str(tmp_path)}


def test_a_server_outlives_whoever_asked_for_it_first(another, tmp_path):
    """Guards end processes by a mark in their environment, and a server is started in the first one's environment."""
    environment = another | {runs.MARK: "first"}
    for mark in (runs.MARK, cluster.FOLDER):
        assert mark in (warm.HERE / "launcher.py").read_text()
    subprocess.run([tmp_path / "python", "-c", "pass"], env=environment, check=True)
    guard.end_marked(runs.MARK, "first")
    subprocess.run([tmp_path / "python", "-c", "pass"], env=environment, check=True)


def test_a_fork_ends_with_its_server_however_that_ends(another, tmp_path):
    code = "import os, time; print(os.getpid(), os.getppid(), flush=True); time.sleep(60)"
    with subprocess.Popen([tmp_path / "python", "-c", code], env=another, stdout=subprocess.PIPE, text=True) as asks:
        fork, server = map(int, asks.stdout.readline().split())
        os.kill(server, signal.SIGKILL)
        with suppress(psutil.NoSuchProcess):
            psutil.Process(fork).wait(timeout=10)
        assert not psutil.pid_exists(fork)


def test_an_engine_of_a_kernel_starts_warm_and_in_the_kernels_folder(tmp_path):
    """ipyparallel takes interpreter and folder on import, which in a fork was done elsewhere."""
    code = """
import sys
from ipyparallel.cluster import launcher
from ipyparallel.engine.app import IPEngine
print(launcher.ipengine_cmd_argv[0] == sys.executable, IPEngine().work_dir)
"""
    said = []
    with run_kernel(cwd=tmp_path) as client:
        client.execute_interactive(code, timeout=60, output_hook=lambda message: said.append(message["content"]))
    assert "".join(each.get("text", "") for each in said) == f"True {tmp_path}\n"
