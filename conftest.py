"""What every run of the tests shares: the kernels' environment, a Python that starts warm, the longest files first.

pytest -n 2 -m quick             the tests of files that take little time: under a minute, for work in between
pytest … --store-durations       write what each file took to tests/durations.json, which orders the next run; for all
                                 files, with -m 'not real and not deploy and not controls and not book and not gpu'
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from stable import fixed
from tests import warm

DURATIONS = Path(__file__).resolve().parent / "tests" / "durations.json"
QUICK = 1.0  # seconds that a file's tests may take, all together, to be among the quick ones
UNKNOWN = 20.0  # seconds that a file without a stored duration may take: rather too early than last


def pytest_addoption(parser):
    parser.addoption("--store-durations", action="store_true", help="write tests/durations.json")
    parser.addoption("--cold", action="store_true", help="start every program and kernel in a new interpreter")


def pytest_configure(config):
    config.addinivalue_line("markers", "quick: in a file whose tests take under a second together")
    # Before anything imports torch. A GPU stays visible: some tests are about one.
    os.environ.update({name: value for name, value in fixed().items() if name != "CUDA_VISIBLE_DEVICES"})
    if not config.option.cold:
        warm.install()
    config.option.loadscopereorder = False  # else xdist orders files by how many tests they have


@pytest.fixture
def cold(monkeypatch):
    """For tests about processes themselves: those that they start are new interpreters."""
    monkeypatch.setattr(sys, "executable", warm.COLD)


def stored() -> dict[str, float]:
    """Seconds by file, as they were when they were last stored."""
    return json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}


def file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


@pytest.hookimpl(tryfirst=True)  # before `-m quick` looks for the marker
def pytest_collection_modifyitems(items):
    """Longest file first, so that the workers end together."""
    seconds = stored()
    items.sort(key=lambda item: (-seconds.get(file_of(item.nodeid), UNKNOWN), file_of(item.nodeid)))
    for item in items:
        if seconds.get(file_of(item.nodeid), UNKNOWN) < QUICK:
            item.add_marker("quick")


def pytest_terminal_summary(terminalreporter, config):
    if config.option.store_durations:
        took = Counter()
        for reports in terminalreporter.stats.values():
            for report in reports:
                if hasattr(report, "duration"):
                    took[file_of(report.nodeid)] += report.duration
        DURATIONS.write_text(json.dumps({k: round(v, 1) for k, v in sorted(took.items())}, indent=0) + "\n")
