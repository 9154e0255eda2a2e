"""Guards for `pytest --nbval notebooks`: what nbval 0.11 overlooks, or does unlike JupyterLab, is mended.

- Cells run with their history on: without it `x;` prints, and `_`, `In` and `Out` do not exist.
- A code cell that was never run is an error: nbval passes it unchecked.
- A cell tagged `raises-exception` needs a stored error, and has to raise: nbval passes the ones that do not.
- A dead kernel is noticed in a second or so: nbval waits for the cell's timeout.
- Kernels run in the environment of the build, and their outputs get the build's tokens and stills (stable.py).
- After a notebook's last cell its exercises run in the same kernel, solved: every checker must say "Right".
- Where an output differs, the numbers in it that moved are listed at the end: what may be printed is what stays the
  same on every processor (CONTRIBUTING.md).
- A closing table names every notebook, as shipped and as solved.

tests/notebooks/test_nbval_guards.py proves each of them, and so notices when a new nbval needs something else.
"""

import re
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path
from queue import Empty

import nbval.kernel
import pytest
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell, IPyNbFile

sys.path.insert(0, str(Path(__file__).resolve().parent))
from stable import kernel_environment, replacements, show_still, warm_up

NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")
POLL = 1.0  # seconds between two looks at whether a silent kernel still lives


class KernelDied(Exception):
    pass


def execute_with_history(kernel, cell_input, allow_stdin=None):
    return kernel.kc.execute(cell_input, store_history=True, allow_stdin=allow_stdin, stop_on_error=False)


def message_or_death(kernel, stream, timeout=None):
    """Like RunningKernel.get_message, but raises KernelDied where the kernel can no longer answer."""
    left = float("inf") if timeout is None else timeout
    while True:
        try:
            return receive(kernel, stream, timeout=min(POLL, left))
        except Empty:
            left -= POLL
            if not kernel.is_alive():
                raise KernelDied from None
            if left <= 0:
                raise


def start_alike(*args, **kwargs):
    return start_new_kernel(*args, env=kernel_environment(), **kwargs)


def set_tokens(notebook):
    notebook.sanitize_patterns = OrderedDict(replacements())
    setup_sanitize_files(notebook)  # the file of --nbval-sanitize-with, if it is another one


class SolvedExercise(IPyNbCell):
    """An exercise cell with its solution, in the kernel that has run the notebook as it is shipped."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs, options=defaultdict(bool))

    def runtest(self):
        from tests.notebooks.anatomy import verdicts

        super().runtest()
        said = verdicts({"outputs": self.test_outputs})
        if set(said) != {"Right"}:
            printed = "".join(out.get("text", "") for out in self.test_outputs)
            self.raise_cell_error(f"The solution's checkers say {said or 'nothing'}, not Right", printed)


def cells_and_solutions(notebook):
    yield from collect_cells(notebook)
    source = notebook.path.parent / "source" / f"{notebook.path.stem}.py"
    if source.exists():
        import build

        cells = build.solve(build.read_source(source)).cells
        exercises = [cell for cell in cells if build.tagged(cell, "exercise")]
        for number, cell in enumerate(exercises, start=1):
            cell.execution_count = number
            name = f"Solved exercise {number}"
            yield SolvedExercise.from_parent(notebook, name=name, cell_num=number, cell=cell)


def compare_with_stills(cell, test, ref, skip_compare=None):
    for out in test:
        show_still(out.get("data", {}))
    return compare_outputs(cell, test, ref, skip_compare)


collect_cells = IPyNbFile.collect
compare_outputs = IPyNbCell.compare_outputs
IPyNbFile.collect = cells_and_solutions
receive = RunningKernel.get_message
start_new_kernel = nbval.kernel.start_new_kernel
setup_sanitize_files = IPyNbFile.setup_sanitize_files
IPyNbCell.compare_outputs = compare_with_stills
RunningKernel.get_message = message_or_death
RunningKernel.execute_cell_input = execute_with_history
nbval.kernel.start_new_kernel = start_alike
IPyNbFile.setup_sanitize_files = set_tokens


def pytest_configure(config):
    if config.option.nbval and not hasattr(config, "workerinput"):  # once, not in each worker
        warm_up()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    if not isinstance(item, IPyNbCell) or item.options["skip"]:
        return (yield)
    must_raise = item.options["check_exception"]
    if item.cell.execution_count is None:
        item.raise_cell_error("This cell was never run, so there is nothing to compare with: `make notebooks`")
    if must_raise and not any(out.output_type == "error" for out in item.cell.outputs):
        item.raise_cell_error("Tagged raises-exception, but no error is stored: `make notebooks`")
    try:
        result = yield
    except KernelDied:
        item.raise_cell_error("The kernel died while this cell ran")
    except nbval.plugin.NbCellError:
        moved = moved_numbers(item.cell.outputs, item.test_outputs or [])
        item.user_properties += [("moved number", f"{old} became {new}") for old, new in moved]
        raise
    if must_raise and not any(out.output_type == "error" for out in item.test_outputs):
        item.raise_cell_error("Tagged raises-exception, but the cell raised nothing")
    return result


def moved_numbers(stored, found):
    """(stored, found) for each number that differs between two lists of outputs, of text that is otherwise alike."""
    texts = []
    for outputs in (stored, found):
        parts = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in outputs]
        texts.append("\n".join(parts))
    if NUMBER.sub("#", texts[0]) != NUMBER.sub("#", texts[1]):
        return []
    pairs = zip(*(NUMBER.findall(text) for text in texts), strict=True)
    return [(old, new) for old, new in pairs if old != new]


def pytest_terminal_summary(terminalreporter):
    """The numbers that moved, and a line for each notebook and variant: cells passed and failed, seconds."""
    for report in terminalreporter.stats.get("failed", []):
        for kind, what in getattr(report, "user_properties", []):
            if kind == "moved number":
                terminalreporter.write_line(f"{report.nodeid}: {what}", red=True)
    rows = {}
    for outcome in ("passed", "failed", "error", "skipped", "xfailed", ""):
        for report in terminalreporter.stats.get(outcome, []):
            name = notebook_of(report)
            if name is None:
                continue
            row = rows.setdefault(name, {"passed": 0, "failed": 0, "seconds": 0.0})
            row["seconds"] += report.duration
            if outcome == "passed":
                row["passed"] += 1
            elif outcome:
                row["failed"] += 1
    if rows:
        terminalreporter.section("notebooks")
    for (name, variant), row in sorted(rows.items()):
        counts = f"{row['passed']:>4} passed{row['failed']:>4} failed{row['seconds']:>8.1f} s"
        terminalreporter.write_line(f"{name:<34}{variant:<9}{counts}", red=bool(row["failed"]))


def notebook_of(report):
    """(notebook, variant) that a report is about, or None."""
    path, _, cell = getattr(report, "nodeid", "").partition("::")
    if path.endswith(".ipynb") and cell:
        return Path(path).stem, "solved" if cell.startswith("Solved") else "shipped"
    solved = dict(getattr(report, "user_properties", [])).get("solved notebook")
    return solved and (solved, "solved")
