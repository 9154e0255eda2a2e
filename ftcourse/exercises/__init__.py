"""Checkers for the exercises: each returns a `Verdict` and never raises an exception at the learner.

A checker is a function decorated with `@checker`. It takes the learner's answer, raises `WrongAnswer` with the likely
mistake, and returns one sentence of praise when the answer is right. It generates its own seeded inputs and compares
with a reference that it computes independently. This module holds what all checkers share; those of one notebook are
in a module of its topic, such as `gradient_masks`.
"""

import functools
import html
import math
from collections.abc import Callable
from dataclasses import dataclass

from ftcourse.solved import recorded


class NotAttempted(Exception):
    """The stub is unchanged: it still holds or returns `...` or None."""


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
        except NotAttempted:
            return Verdict(False, "replace the … by your code and run the cell again.", not_attempted=True)
        except WrongAnswer as mistake:
            return Verdict(False, str(mistake))
        except Exception as error:  # to a learner, a hint helps more than a stack of our frames
            return Verdict(False, f"your code raised {type(error).__name__}: {error}")

    return verdict


def require_answer(answer):
    """Return `answer`, or raise `NotAttempted` while it is None or `...`, as in an unchanged stub."""
    if answer is None or answer is ...:
        raise NotAttempted
    return answer


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
