"""Checkers for the exercises: each returns a `Verdict` and never raises an exception at the learner.

A checker is a function decorated with `@checker`. It takes the learner's answer, raises `WrongAnswer` with the likely
mistake, and returns one sentence of praise when the answer is right. It generates its own seeded inputs and compares
with a reference that it computes independently. This module holds what all checkers share; those of one notebook are
in a module of its topic, such as `gradient_masks`.
"""

import dis
import functools
import html
import linecache
import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType

from ftcourse.solved import recorded

# What a function with nothing but `...` in it compiles to, in Python 3.11 to 3.14.
EMPTY_BODY = {"RESUME", "NOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE", "COPY_FREE_VARS", "MAKE_CELL"}


class NotAttempted(Exception):
    """The stub is unchanged: it still holds or returns `...` or None.

    `returned_none`: None is what the learner's function returned, and not a part of it or the value of a variable.
    """

    def __init__(self, returned_none: bool = False):
        super().__init__()
        self.returned_none = returned_none


class WrongAnswer(Exception):
    """The answer is wrong; the message names the likely mistake."""


@dataclass(frozen=True, repr=False)
class Verdict:
    """The result of a checker. `not_attempted`: the stub is unchanged (and `right` is False)."""

    right: bool
    message: str
    not_attempted: bool = False

    @property
    def headline(self) -> str:
        """One of "Right", "Not solved yet", "Not yet"."""
        return "Right" if self.right else "Not solved yet" if self.not_attempted else "Not yet"

    def __repr__(self) -> str:
        return f"{self.headline}: {self.message}"

    def _repr_html_(self) -> str:
        # Okabe-Ito green, grey and vermilion; the headline says the same, so colour carries nothing alone.
        colour, sign = {
            "Right": ("#009E73", "✔"),
            "Not solved yet": ("#888888", "○"),
            "Not yet": ("#D55E00", "✘"),
        }[self.headline]
        return (
            f'<div role="status" style="border-left: 5px solid {colour}; padding: 0.3em 0.8em">'
            f"{sign} <strong>{self.headline}:</strong> {html.escape(self.message)}</div>"
        )


def checker(check: Callable[..., str]) -> Callable[..., Verdict]:
    """Decorate `check(answer, ...)`, which returns praise or raises, so that it returns a `Verdict`."""

    @recorded
    @functools.wraps(check)
    def verdict(*args, **kwargs) -> Verdict:
        try:
            return Verdict(right=True, message=check(*args, **kwargs))
        except NotAttempted as stub:
            if stub.returned_none and args and isinstance(args[0], FunctionType) and not is_stub(args[0]):
                return Verdict(False, f"`{args[0].__name__}` returned None: did you forget `return`?")
            return Verdict(False, "replace the … by your code and run the cell again.", not_attempted=True)
        except WrongAnswer as mistake:
            return Verdict(False, str(mistake))
        except Exception as error:  # to a learner, a hint helps more than a stack of our frames
            return Verdict(False, f"your code raised {type(error).__name__}: {error}{_place(error, args)}")

    return verdict


def require_answer(answer):
    """Return what the learner's function returned, or raise `NotAttempted` for None or `...`, as a stub returns."""
    if answer is None or answer is ...:
        raise NotAttempted(returned_none=answer is None)
    return answer


def require_filled(value):
    """Return a variable's value, or a part of an answer; raises `NotAttempted` while it is None or `...`."""
    if value is None or value is ...:
        raise NotAttempted
    return value


def match_known_mistake(value: float, hints: dict[float, str], rel_tol: float = 1e-9) -> None:
    """Raise `WrongAnswer` with the hint whose key, the result of a typical mistake, is close to `value`."""
    for wrong, hint in hints.items():
        if math.isclose(value, wrong, rel_tol=rel_tol):
            raise WrongAnswer(hint)


def require_tensor(answer, shape):
    """Return `answer` detached, as a tensor of `shape`; raises `NotAttempted` for a stub, else `WrongAnswer`."""
    import torch

    if not isinstance(require_answer(answer), torch.Tensor):
        raise WrongAnswer(f"a tensor is wanted, and your code returns a {type(answer).__name__}.")
    if answer.shape != torch.Size(shape):
        raise WrongAnswer(f"the shape should be {tuple(shape)}, and yours is {tuple(answer.shape)}.")
    return answer.detach()


def is_stub(function: FunctionType) -> bool:
    """Whether a function holds and returns nothing but `...` or None, as in an exercise that nobody has begun."""
    return all(
        instruction.opname in EMPTY_BODY and ("CONST" not in instruction.opname or instruction.argval in (None, ...))
        for instruction in dis.get_instructions(function)
    )


def _place(error: BaseException, args: tuple) -> str:
    """Where the learner's code raised the error: " (in `function`, line 3: `code`)"; "" if none of their code ran.

    That is the innermost line of the cell that defines the checked function or, failing that, of any cell.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    cell = args[0].__code__.co_filename if args and isinstance(args[0], FunctionType) else None
    in_cell = [(frame, line) for frame, line in frames if frame.f_code.co_filename == cell]
    anywhere = [(frame, line) for frame, line in frames if frame.f_globals.get("__name__") == "__main__"]
    if not (in_cell or anywhere):
        return ""
    frame, line = (in_cell or anywhere)[-1]
    code = linecache.getline(frame.f_code.co_filename, line, frame.f_globals).strip()
    return f" (in `{frame.f_code.co_name}`, line {line}: `{code}`)"
