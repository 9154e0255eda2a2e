"""An error on purpose: shown as an error, and the cell is not one that failed."""

import re
import sys
import types

import pytest
from IPython import get_ipython
from IPython.testing.globalipapp import start_ipython
from IPython.utils.capture import capture_output

from ftcourse.expected import expected_error

CELL = """\
from ftcourse.expected import expected_error
def f(x):
    raise ValueError(f"no {x}")

print("before")
with expected_error(ValueError):
    f(3)"""


def test_the_error_is_printed_and_the_block_ends(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    with expected_error(ValueError, KeyError):
        raise KeyError("a")
    assert capsys.readouterr().err.endswith("KeyError: 'a'\n")


def test_no_error_or_another_one_is_no_success():
    nothing = "expected ValueError or KeyError, and nothing was raised"
    with pytest.raises(AssertionError, match=nothing), expected_error(ValueError, KeyError):
        pass
    with pytest.raises(TypeError), expected_error(ValueError):
        raise TypeError


def test_a_notebook_shows_it_with_its_lines_and_takes_the_cell_for_a_success():
    shell = get_ipython() or start_ipython()
    with capture_output() as captured:
        ran = shell.run_cell(CELL)
        failed = shell.run_cell("1 / 0")
        other = shell.run_cell("with expected_error(ValueError):\n    1 / 0")
    assert ran.success, "or Run All ends"
    assert isinstance(failed.error_in_exec, ZeroDivisionError) and not other.success
    shown = re.sub(r"\x1b\[[\d;]*m", "", captured.stdout).partition("ZeroDivisionError")[0]
    assert shown.startswith("before\n") and "ValueError: no 3" in shown
    assert "----> 7     f(3)" in shown and "----> 3     raise ValueError" in shown and "__exit__" not in shown
