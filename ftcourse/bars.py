"""The course's progress bar: tqdm's, in the same plain text in a terminal and in a notebook."""

import sys

from tqdm import tqdm

IN_A_NOTEBOOK = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}{postfix}"


class Bar(tqdm):
    """A tqdm whose unit is a plural, such as "steps".

    In a notebook it goes to standard output, because front ends show standard error as if it were one, and the clock
    disappears at the end, so that what a notebook stores is the same after each run.
    """

    ended = False

    def __init__(self, *arguments, **details):
        self.in_notebook = in_notebook()
        if self.in_notebook:
            details.setdefault("file", sys.stdout)
        super().__init__(*arguments, **details)

    @property
    def format_dict(self):
        given = super().format_dict
        if self.in_notebook:
            over = self.ended or self.n == self.total
            given["bar_format"] = IN_A_NOTEBOOK + ("" if over else " [{remaining} left]")
        return given

    def close(self):
        self.ended = True
        super().close()


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")
