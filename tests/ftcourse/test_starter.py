"""One process runs program after program in forks, and neither a failure nor an interrupt confuses the next one."""

import signal
import threading
import time

import pytest

from ftcourse.starter import Starter
from tests.ftkit.distributed.processes import gone

pytestmark = pytest.mark.usefixtures("cold")  # a program is a fork of the process that is started here


@pytest.fixture
def starter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "import.py": "import sys, colorsys; open('imported', 'a').write(str('graphlib' in sys.modules))",
        "fail.py": "raise ValueError('no good')",
        "hang.py": "import os, time; open('pid.new', 'w').write(str(os.getpid()))\n"
        "os.rename('pid.new', 'pid'); time.sleep(600)",
    }.items():
        (tmp_path / name).write_text(text)
    made = Starter("graphlib")
    yield made
    made.stop()


def test_programs_run_one_after_the_other_and_a_failure_says_why(starter, tmp_path):
    starter.run("import.py")
    with pytest.raises(RuntimeError, match=r"fail.py failed:\n(.*\n)*ValueError: no good"):
        starter.run("fail.py")
    starter.run("import.py")
    assert (tmp_path / "imported").read_text() == "TrueTrue"


def test_an_interrupt_ends_the_program_and_the_next_one_runs(starter, tmp_path):
    def stop_button():
        while not (tmp_path / "pid").exists():
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=stop_button, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            starter.run("hang.py")
    finally:
        signal.signal(signal.SIGINT, before)
    assert gone([int((tmp_path / "pid").read_text())])
    starter.run("import.py")
    assert (tmp_path / "imported").read_text() == "True"
