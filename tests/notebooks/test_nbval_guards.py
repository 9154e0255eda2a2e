"""Each guard of notebooks/conftest.py on tiny notebooks: red where it should be, green elsewhere.

All of them run in one pytest of two workers, as `make test` runs the real ones. A second run, without the
guards, shows that nbval alone gets these cases wrong, so that a guard no longer needed is noticed as well.
"""

import os
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbformat.v4 import new_code_cell, new_notebook, new_output

from ftcourse.svg import picture_html
from tests import ROOT

pytestmark = pytest.mark.thorough

BOOM = new_output("error", ename="ValueError", evalue="boom", traceback=["ValueError: boom"])


def cell(source, *outputs, tags=(), count=1):
    return new_code_cell(source, outputs=list(outputs), execution_count=count, metadata={"tags": list(tags)})


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def value(text):
    return new_output("execute_result", {"text/plain": text}, execution_count=1)


CONTROL = """\
from IPython.display import display
view = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}}
display({"text/plain": "a", "image/svg+xml": "<svg></svg>", **view}, raw=True)"""
STILL = {"text/plain": "a", "image/svg+xml": "<svg></svg>", "text/html": picture_html("<svg></svg>")}
LASTING = "import os\nvars_ = sorted(v for v in os.environ if v.startswith(('PYTEST_', 'FTKIT_')))\n"
NOTEBOOKS = {
    "good": [
        cell("print(1 + 1)", stream("2\n")),
        cell("raise ValueError('boom')", BOOM, tags=["raises-exception"]),
    ],
    "changed_number": [cell("print(1 + 1, 'of 1,000, 5e-07')", stream("3 of 1,000, 2e-07\n"))],
    "unrun": [cell("print(1 + 1)", count=None)],
    "no_stored_error": [cell("raise ValueError('boom')", tags=["raises-exception", "nbval-ignore-output"])],
    "raises_nothing": [cell("pass", BOOM, tags=["raises-exception", "nbval-ignore-output"])],
    "untagged_error": [cell("raise ValueError('boom')", BOOM)],
    "other_error": [cell("raise ValueError('bang')", BOOM, tags=["raises-exception"])],
    "semicolon": [cell("41 + 1;")],
    "history": [cell("6 * 7", value("42")), cell("_ + Out[1] + len(In)", value("87"))],
    "still": [cell(CONTROL, new_output("display_data", STILL))],
    "dead_kernel": [cell("import os, time\nos._exit(3)"), cell("print(1)", stream("1\n"))],
    "environment": [
        cell(LASTING + "print(vars_, os.environ['OMP_NUM_THREADS'])", stream("['FTKIT_PROGRESS'] 1\n")),
        cell(
            "print('took 12.34 s', object(), os.getcwd())",
            stream("took #.# s <object object at 0xADDR> notebooks\n"),
        ),
    ],
}
RED = {
    "changed_number": "Cell outputs differ",
    "unrun": "never run",
    "no_stored_error": "no error is stored",
    "raises_nothing": "raised nothing",
    "untagged_error": "caused an exception",
    "other_error": "Cell outputs differ",
    "dead_kernel": "The kernel died while this cell ran",
}


def run(folder, names, guarded):
    """Run the notebooks under nbval; returns {name: (failed?, messages, seconds)} and what pytest printed."""
    notebooks = folder / "notebooks"
    notebooks.mkdir()
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "sanitize.cfg", folder / "tests")
    for helper in ("conftest.py", "stable.py") if guarded else ():
        shutil.copy(ROOT / "notebooks" / helper, notebooks)
    for name in names:
        nbformat.write(new_notebook(cells=NOTEBOOKS[name]), notebooks / f"{name}.ipynb")
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval"]
    command += ["-n", "2", "--dist", "loadfile"] if guarded else ["-p", "no:xdist"]
    command += ["--nbval-current-env", "--nbval-cell-timeout=25", "--nbval-sanitize-with=tests/sanitize.cfg"]
    done = subprocess.run(
        [*command, "--junitxml=report.xml", "notebooks"],
        cwd=folder,
        env=os.environ | {"FTKIT_MODEL": "a learner's own"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = {}
    for case in ElementTree.parse(folder / "report.xml").iter("testcase"):
        name = case.get("classname").split(".")[1]
        messages = [part.text or "" for kind in ("failure", "error") for part in case.iter(kind)]
        failed, before, seconds = found.get(name, (False, "", 0.0))
        found[name] = failed or bool(messages), before + "".join(messages), seconds + float(case.get("time"))
    return found, done.stdout


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    manager, client = start_new_kernel()  # the first one waits for its server, and a test looks at the seconds
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    return run(tmp_path_factory.mktemp("guarded"), NOTEBOOKS, guarded=True)


@pytest.fixture(scope="module")
def unguarded(tmp_path_factory):
    names = ["unrun", "no_stored_error", "raises_nothing", "semicolon", "history", "environment"]
    return run(tmp_path_factory.mktemp("unguarded"), names, guarded=False)[0]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_guarded_run_is_red_where_it_should_be(guarded, name):
    failed, messages, _ = guarded[0][name]
    assert failed == (name in RED), messages
    assert RED.get(name, "") in messages


def test_dead_kernel_is_noticed_within_seconds(guarded):
    assert guarded[0]["dead_kernel"][2] < 10  # the cell's timeout, which nbval would wait for, is 25 s


def test_summary_names_every_notebook_and_ends_as_pytest_does(guarded):
    lines = guarded[1].strip().splitlines()
    for name, cells in NOTEBOOKS.items():
        (line,) = [line for line in lines if re.match(rf"{name} +shipped", line)]
        failed = {"dead_kernel": 2}.get(name, int(name in RED))
        assert re.search(rf"\b{len(cells) - failed} passed +{failed} failed +\d+\.\d s$", line), line
    assert re.match(r"=+ \d+ failed, \d+ passed.* in [\d.]+s.* =+$", lines[-1])


def test_numbers_that_moved_are_named_and_no_others(guarded):
    lines = [line for line in guarded[1].splitlines() if " became " in line]
    assert [line.split(": ")[1] for line in lines] == ["3 became 2", "2e-07 became 5e-07"]
    assert all("changed_number.ipynb::Cell 0" in line for line in lines)


@pytest.mark.parametrize("name", ["unrun", "no_stored_error", "raises_nothing"])
def test_nbval_alone_overlooks(unguarded, name):
    assert not unguarded[name][0]


@pytest.mark.parametrize("name", ["semicolon", "history", "environment"])
def test_nbval_alone_is_red_without_need(unguarded, name):
    assert unguarded[name][0]
