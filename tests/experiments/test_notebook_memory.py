"""What a tree of processes takes, and the record and the table of the notebooks' memory."""

import importlib.util
import json
import subprocess
import sys
import time

import psutil
import pytest

from experiments import notebook_memory
from tests import ROOT

MIB = 2**20
# A parent of 60 MiB, and a child that shares them as its fork and takes 40 MiB more.
TREE = """
import os, sys, time
block = bytearray(os.urandom(1)) * (60 << 20)
if os.fork() == 0:
    more = bytearray(os.urandom(1)) * (40 << 20)
    time.sleep(60)
print("there", flush=True)
time.sleep(60)
"""


@pytest.fixture
def tree(cold):
    process = subprocess.Popen([sys.executable, "-c", TREE], stdout=subprocess.PIPE)
    process.stdout.readline()
    time.sleep(0.3)  # the child fills its block
    yield psutil.Process(process.pid)
    for one in [*psutil.Process(process.pid).children(), process]:
        one.kill()
    process.wait()


def test_shared_pages_count_once(tree):
    found = notebook_memory.tree_bytes(tree)
    assert 100 * MIB < found < 140 * MIB
    together = sum(process.memory_info().rss for process in [tree, *tree.children()])
    assert together > found + 50 * MIB, "a sum of resident sizes counts the block twice"


def test_the_peak_outlives_what_had_it():
    with notebook_memory.peak_of(lambda: [psutil.Process()]) as peak:
        block = bytearray(b"x") * (80 * MIB)
        time.sleep(3 * notebook_memory.INTERVAL)
        before = peak[0]
        del block
        time.sleep(2 * notebook_memory.INTERVAL)
    assert peak[0] >= before > 80 * MIB


def test_an_unknown_notebook_is_named(capsys):
    with pytest.raises(SystemExit):
        notebook_memory.main(["99_nothing"])
    assert "no notebook 99_nothing" in capsys.readouterr().err


def test_a_few_notebooks_change_no_other_figure(tmp_path, monkeypatch):
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"lab": 7, "notebooks": {"01_gradient_masks": {"peak": 1}}}))
    monkeypatch.setattr(notebook_memory, "RECORD", record)
    monkeypatch.setattr(notebook_memory, "measure_lab", lambda: 8)
    monkeypatch.setattr(notebook_memory, "measure_notebook", lambda path: {"peak": 2})
    assert notebook_memory.main(["02_child_tuning"]) == 0
    stored = json.loads(record.read_text())
    assert stored["lab"] == 7
    assert stored["notebooks"] == {"01_gradient_masks": {"peak": 1}, "02_child_tuning": {"peak": 2}}
    assert notebook_memory.main([]) == 0
    stored = json.loads(record.read_text())
    assert stored["lab"] == 8 and stored["notebooks"]["01_gradient_masks"] == {"peak": 2}


spec = importlib.util.spec_from_file_location("memory_table", ROOT / "deploy/memory_table.py")
memory_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory_table)


def test_the_page_shows_the_record_and_what_is_not_measured():
    record = json.loads(notebook_memory.RECORD.read_text(encoding="utf-8"))
    assert set(record["notebooks"]) <= memory_table.names()
    page = memory_table.PAGE.read_text(encoding="utf-8")
    assert memory_table.BLOCK.search(page)[0].partition("\n")[2] == memory_table.table(record)
    record["lab"] += 40 * MIB
    assert memory_table.table(record) not in page


@pytest.mark.parametrize(("mib", "said"), [(1024, "fits"), (1025, "as a rule"), (2048, "as a rule"), (2049, "**no**")])
def test_binders_limits(mib, said):
    assert memory_table.on_binder(mib * MIB).startswith(said)
