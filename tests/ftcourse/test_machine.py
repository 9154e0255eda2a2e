"""The machine check: made-up machines, each lacking one thing, get the verdict and the remedy for that thing."""

import subprocess
import sys
from dataclasses import replace
from importlib import metadata

import psutil
import pytest

from ftcourse import machine
from ftcourse.machine import FINE, GIB, MISSING, TOO_LITTLE, Machine, check_machine

GOOD = Machine(
    python="3.11.7",
    cores=2,
    memory_bytes=8 * GIB,
    available_bytes=6 * GIB,
    disk_bytes=50 * GIB,
    versions={"torch": "2.13.0+cpu", "peft": "0.20.0", "pytest": None},
    requires=("torch>=2.11", "peft>=0.20,<1", 'pytest>=8; extra == "test"'),
    requires_python=">=3.11",
)
LACKS = {  # what is wrong -> the change, whose line, its verdict, what the remedy names
    "old Python": ({"python": "3.10.4"}, "Python", MISSING, "make clean lab PYTHON="),
    "one core": ({"cores": 1}, "cores", TOO_LITTLE, "twice as long"),
    "memory taken": ({"available_bytes": 4 * GIB - 1}, "memory", TOO_LITTLE, "Shut Down All Kernels"),
    "disk full": ({"disk_bytes": GIB}, "disk", TOO_LITTLE, "another disk"),
    "GPU unused": ({"idle_gpu": True}, "accelerator", TOO_LITTLE, "pytorch.org"),
    "library missing": (
        {"versions": {"torch": "2.13.0", "peft": None}},
        "peft",
        MISSING,
        "pip install 'peft<1,>=0.20'",
    ),
    "library too old": (
        {"versions": {"torch": "2.9.1+cu126", "peft": "0.20.0"}},
        "torch",
        MISSING,
        "'torch>=2.11'",
    ),
    "library too new": ({"versions": {"torch": "2.13.0", "peft": "1.0"}}, "peft", MISSING, "peft<1"),
    "ftkit not installed": ({"requires": ()}, "ftkit", MISSING, "make lab"),
}


def test_a_machine_that_is_enough_gets_no_remedy():
    findings = check_machine(GOOD)
    assert [(f.severity, f.remedy) for f in findings] == [(FINE, "")] * 6
    assert findings.complete


@pytest.mark.parametrize("lack", LACKS)
def test_what_is_lacking_is_named_with_its_remedy_and_nothing_else_is(lack):
    change, what, verdict, remedy = LACKS[lack]
    findings = check_machine(replace(GOOD, **change))
    (wrong,) = [f for f in findings if f.severity != FINE]
    assert (wrong.code, wrong.severity) == (what, verdict)
    assert remedy in wrong.remedy
    assert findings.complete == (verdict != MISSING)
    assert wrong.remedy in str(findings)


def test_what_is_free_is_not_shown_while_it_suffices():
    busier = replace(GOOD, available_bytes=5 * GIB, disk_bytes=40 * GIB)
    assert str(check_machine(busier)) == str(check_machine(GOOD))
    assert "3.0 GiB of it available" in str(check_machine(replace(GOOD, available_bytes=3 * GIB)))


def test_accelerators_are_named_with_their_memory():
    found = check_machine(replace(GOOD, accelerators=(("NVIDIA T4", 15 * GIB), ("MPS", 0))))[4]
    assert (found.severity, found.observed) == (FINE, "NVIDIA T4, 15 GiB; MPS")


def test_the_table_escapes_what_it_shows():
    table = check_machine(replace(GOOD, versions={}))._repr_html_()
    assert "peft&lt;1" in table
    assert table.count("<tr>") == 1 + 7


def test_this_machine_is_read_as_the_system_reports_it(tmp_path):
    found = machine.read_machine(tmp_path)
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert 1 <= found.cores <= psutil.cpu_count()
    assert 0 < found.available_bytes < found.memory_bytes <= psutil.virtual_memory().total
    assert found.disk_bytes == pytest.approx(psutil.disk_usage(tmp_path).free, rel=0.05)
    assert found.versions["torch"] == metadata.version("torch")
    assert "torch" in " ".join(found.requires)


def test_a_missing_library_is_found_missing(monkeypatch):
    def without_peft(name):
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    version = metadata.version
    monkeypatch.setattr(machine.metadata, "version", without_peft)
    wrong = [f.code for f in check_machine() if f.severity == MISSING]
    assert wrong == ["peft"]


def test_the_command_exits_with_1_only_where_something_is_missing(monkeypatch, capsys):
    for change, code in [({}, 0), ({"cores": 1}, 0), ({"requires": ()}, 1)]:
        monkeypatch.setattr(machine, "read_machine", lambda change=change: replace(GOOD, **change))
        assert machine.main([]) == code
        assert "cores" in capsys.readouterr().out


def test_the_check_names_the_libraries_that_it_needs_itself(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert machine.main([]) == 1
    assert "make lab" in capsys.readouterr().out


def test_help():
    command = [sys.executable, "-m", "ftcourse.machine", "--help"]
    assert "Exit status 1" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
