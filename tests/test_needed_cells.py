"""The cells that exercises need: found through functions, imports and magics; a cell too few would be a NameError."""

from nbformat.v4 import new_code_cell, new_markdown_cell
from needed_cells import names, needed

EXERCISE = {"tags": ["exercise"]}


def test_what_a_cell_uses_and_binds():
    used, bound = names(
        "import os.path as p\ndef f(x):\n    y = x + z\n    return y\nfor i in range(3): g.h = f(i)"
    )
    assert bound == {"p", "f", "i"} and used == {"f", "z", "range", "g", "i"}
    assert names("def f():\n    global counter\n    counter = 1")[1] == {"f", "counter"}
    assert names("[k for k in rows]") == ({"rows"}, set())


def test_magics_and_written_files_are_no_syntax_errors():
    assert names("%matplotlib inline\n!ls\na = b")[1] == {"a"}
    assert "a" not in names("%%writefile x.py\na = b")[1]


def test_what_exercises_need_through_other_cells():
    sources = [
        "import math",
        "base = math.pi",
        "slow = 1 / 0",
        "def twice(x): return 2 * x + base",
        "twice = twice",
    ]
    cells = [new_code_cell(source) for source in sources]
    cells += [
        new_markdown_cell("slow"),
        new_code_cell("def mine(slow): return twice(slow)", metadata=EXERCISE),
    ]
    cells += [new_code_cell("base = None")]  # it comes after the last exercise
    assert [cell.source for cell in needed(cells)] == [
        "import math", "base = math.pi", sources[3], "twice = twice", cells[-2].source
    ]  # fmt: skip
    assert needed(cells[:5]) == []
