"""What all checkers say: of a stub, of a forgotten `return`, and of an exception, with the learner's line."""

import contextlib
import io

import pytest
from IPython.core.interactiveshell import InteractiveShell

from ftcourse.exercises import WrongAnswer, checker, is_stub, require_answer, require_filled
from ftcourse.exercises.optimizer_and_schedule import check_accumulate


@checker
def check_double(double, note="filled") -> str:
    """Check `double(x)`."""
    if require_answer(double(3)) != 6:
        raise WrongAnswer("it should be twice x.")
    require_filled(note)
    return "twice x."


def stub(x: float) -> float:
    """Return twice x."""
    ...  # noqa: PIE790


def test_stubs_are_not_mistakes():
    around = 2

    def with_a_closure(x):
        """Return twice x."""
        return around and None

    assert is_stub(stub) and is_stub(lambda x: None) and is_stub(lambda x: ...)
    assert not is_stub(with_a_closure)
    assert repr(check_double(stub)) == "Not solved yet: replace the … by your code and run the cell again."
    assert check_double(lambda x: ...).not_attempted
    assert check_double(None).message.startswith("your code raised TypeError")


def test_a_forgotten_return_is_named():
    def double(x):
        2 * x

    verdict = check_double(double)
    assert repr(verdict) == "Not yet: `double` returned None: did you forget `return`?"
    assert not verdict.not_attempted


def test_a_part_that_is_open_is_no_forgotten_return():
    for open_part in (None, ...):
        assert check_double(lambda x: 2 * x, open_part).not_attempted


def test_a_function_that_should_return_nothing_is_not_asked_to():
    def accumulate(model, micro_batches):
        for batch in micro_batches:
            model(batch["input_ids"])

    assert check_accumulate(accumulate).message.startswith("the model has no gradient")
    assert check_accumulate(stub).message.startswith("your code raised TypeError")  # two arguments
    assert check_accumulate(lambda model, batches: ...).not_attempted


@pytest.fixture
def cell():
    """Runs a cell's code as a notebook does, and returns the value of its last line."""
    shell = InteractiveShell()
    shell.user_ns["check"] = check_double

    def run(code):
        with contextlib.redirect_stdout(io.StringIO()):
            return shell.run_cell(code, store_history=True).result

    return run


def test_an_exception_is_said_with_the_line_of_the_cell(cell):
    verdict = cell("def double(x):\n    table = {}\n    return table[x]  # as a table\n\ncheck(double)")
    said = "your code raised KeyError: 3 (in `double`, line 3: `return table[x]  # as a table`)"
    assert repr(verdict) == f"Not yet: {said}"


def test_the_line_is_that_of_the_checked_cell_even_where_another_raises(cell):
    cell("def helper(x):\n    raise ValueError('no')")
    assert "line 2: `return helper(x) + 1`" in cell("def double(x):\n    return helper(x) + 1\n\ncheck(double)").message


def test_a_helper_in_the_same_cell_is_named(cell):
    verdict = cell("def half(x):\n    return x / 0\n\ndef double(x):\n    return half(x)\n\ncheck(double)")
    assert "ZeroDivisionError" in verdict.message and "(in `half`, line 2: `return x / 0`)" in verdict.message


def test_without_a_line_of_the_learners_none_is_named(cell):
    assert repr(cell("check(42)")) == "Not yet: your code raised TypeError: 'int' object is not callable"
