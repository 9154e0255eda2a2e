"""Errors on purpose: shown as a notebook shows an error, while the cells after it go on."""

import sys
import traceback


class expected_error:
    """A block, the last of its cell, that has to raise one of `kinds`: `with expected_error(ValueError): …`.

    The error is shown, but its cell counts as one that succeeded: "Run All" ends at a cell that fails in Colab, and in
    JupyterLab the cells that wait for their turn lose their mark, so that nothing seems to run any more.

    Raises AssertionError where the block raises nothing; an error of another kind is an error.
    """

    def __init__(self, *kinds: type[BaseException]):
        self.kinds = kinds or (Exception,)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, frames) -> bool:
        if error is None:
            raise AssertionError(
                f"expected {' or '.join(each.__name__ for each in self.kinds)}, and nothing was raised"
            )
        if not isinstance(error, self.kinds):
            return False
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if shell is None:
            traceback.print_exception(kind, error, frames)
            return True

        # IPython shows it when the cell has ended, because only then has the cell's frame the line that raised.
        def forgive(result) -> None:
            shell.events.unregister("post_run_cell", forgive)
            if result.error_in_exec is error:
                result.error_in_exec = None

        shell.events.register("post_run_cell", forgive)
        return False
