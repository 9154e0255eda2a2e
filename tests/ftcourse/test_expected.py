"""An error on purpose: shown as an error, and the cell is not one that failed."""

import re

import nbformat
import pytest
from nbclient import NotebookClient

from ftcourse.expected import expected_error

CELL = """\
def f(x):
    raise ValueError(f"no {x}")

print("before")
with expected_error(ValueError):
    f(3)"""


def test_the_error_is_printed_and_the_block_ends(capsys):
    with expected_error(ValueError, KeyError):
        raise KeyError("a")
    assert capsys.readouterr().err.endswith("KeyError: 'a'\n")


def test_no_error_or_another_one_is_no_success():
    nothing = "expected ValueError or KeyError, and nothing was raised"
    with pytest.raises(AssertionError, match=nothing), expected_error(ValueError, KeyError):
        pass
    with pytest.raises(TypeError), expected_error(ValueError):
        raise TypeError


def test_a_notebook_shows_it_with_its_lines_and_replies_that_all_is_well():
    cells = ["from ftcourse.expected import expected_error", CELL, "print(1)", "1 / 0"]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    replies = []
    client = NotebookClient(nb, timeout=60, kernel_name="python3", allow_errors=True)
    client.on_cell_executed = lambda cell, cell_index, execute_reply: replies.append(execute_reply)
    client.execute()
    assert [reply["content"]["status"] for reply in replies] == ["ok", "ok", "ok", "error"], "or Run All ends"
    printed, error = nb.cells[1].outputs
    assert printed.text == "before\n" and (error.output_type, error.ename, error.evalue) == (
        "error",
        "ValueError",
        "no 3",
    )
    shown = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(error.traceback))
    assert (
        "----> 6     f(3)" in shown
        and "----> 2     raise ValueError" in shown
        and "expected" not in shown.split("6")[1]
    )
    assert nb.cells[2].outputs[0].text == "1\n", "the kernel goes on"
