"""Checkers for the exercises: each returns a `Verdict` and never raises at the learner.

A checker is a function decorated with `@checker` that takes the learner's answer, raises `NotYet` with
the likely mistake, and returns one sentence of praise when all is well. It draws its own seeded inputs and
compares with a reference that it computes by another road, never with the learner's own answer.
Here is what all of them share; each notebook's checkers are a module beside it, like `gradient_masks`.
"""

import functools
import html
import math
from collections.abc import Callable
from dataclasses import dataclass


class NotAttempted(Exception):
    """The stub is untouched: it still holds or returns `...` or None."""


class WrongAnswer(Exception):
    """The answer is wrong; the message names the likely mistake."""


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a checker found. `empty`: the stub is untouched (and then `right` is False)."""

    right: bool
    message: str
    empty: bool = False

    @property
    def headline(self) -> str:
        """One of "Right", "Not solved yet", "Not yet"."""
        return "Right" if self.right else "Not solved yet" if self.empty else "Not yet"

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
    """Wrap `check(answer, ...)`, which returns praise or raises, into a function that returns a `Verdict`."""

    @functools.wraps(check)
    def verdict(*args, **kwargs) -> Verdict:
        try:
            return Verdict(right=True, message=check(*args, **kwargs))
        except NotAttempted:
            return Verdict(False, "replace the … by your code and run the cell again.", empty=True)
        except WrongAnswer as mistake:
            return Verdict(False, str(mistake))
        except Exception as error:  # to a learner, a hint helps more than a stack of our frames
            return Verdict(False, f"your code raised {type(error).__name__}: {error}")

    return verdict


def require_answer(answer):
    """Return `answer`, or raise `NotSolved` while it is what an untouched stub gives: None or `...`."""
    if answer is None or answer is ...:
        raise NotAttempted
    return answer


def match_known_mistake(value: float, hints: dict[float, str], rel_tol: float = 1e-9) -> None:
    """Raise `NotYet` with the hint whose key is `value`: what a usual mistake comes to."""
    for wrong, hint in hints.items():
        if math.isclose(value, wrong, rel_tol=rel_tol):
            raise WrongAnswer(hint)


def require_tensor(answer, shape):
    """Return `answer` detached, as a tensor of `shape`; raise `NotSolved` for a stub, `NotYet` otherwise."""
    import torch

    if not isinstance(require_answer(answer), torch.Tensor):
        raise WrongAnswer(f"a tensor is wanted, and your code returns a {type(answer).__name__}.")
    if answer.shape != torch.Size(shape):
        raise WrongAnswer(f"the shape should be {tuple(shape)}, and yours is {tuple(answer.shape)}.")
    return answer.detach()
