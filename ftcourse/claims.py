"""A claim of a source, and what testing it gave: one format for every notebook's recap and for the ledger.

A notebook collects `Claim`s where it tests them and prints them once, in its recap, with `show_claims`. What it
printed is all that the claims ledger (data/claims.json, written by notebooks/ledger.py) is made from, so a
verdict is computed by a cell or it is nowhere.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

VERDICTS = ("holds", "holds under conditions", "outdated", "not reproduced", "not tested")
PRINTED = re.compile(rf"^({'|'.join(VERDICTS)})(?: \((.+?)\))?: (.+)\n    source: (.+)\n    measured: (.+)$", re.M)


@dataclass(frozen=True)
class Claim:
    """`held` is the outcome of a test in a cell, never typed in. Every text is one line and not empty.

    None stands for a test that has no run to judge yet, such as one that wants a GPU; `measured` then says what
    is missing and which command measures it.
    Raises ValueError for a text that is empty or has several lines, and for a qualification that contradicts
    `held`: `only_if` narrows a claim that held, `outdated_by` explains one that did not.
    """

    claim: str  # as its source makes it
    source: str  # who makes it and where, as short as a reader can follow
    held: bool | None
    measured: str  # numbers with units, seeds and spread; rounded so that they are the same on any machine
    only_if: str = ""  # it held, but only under this condition
    outdated_by: str = ""  # it did not hold, because of this later change

    def __post_init__(self):
        if self.held is not None:
            object.__setattr__(self, "held", bool(self.held))  # torch's and numpy's truths too
        for name in ("claim", "source", "measured", "only_if", "outdated_by"):
            text = getattr(self, name)
            if len(text.splitlines()) > 1 or text != text.strip() or not (text or name.endswith(("if", "by"))):
                raise ValueError(f"{name} is {text!r}: give one line of text, without space around it")
        if "): " in self.only_if + self.outdated_by:
            raise ValueError("a condition may not hold '): ', which ends it where it is printed")
        if self.only_if and not self.held:
            raise ValueError(f"{self.claim!r} did not hold, so `only_if` has nothing to narrow")
        if self.outdated_by and self.held is not False:
            raise ValueError(f"{self.claim!r} was not found wanting, so it is not outdated")

    @property
    def verdict(self) -> str:
        """One of VERDICTS."""
        if self.held is None:
            return "not tested"
        if self.held:
            return "holds under conditions" if self.only_if else "holds"
        return "outdated" if self.outdated_by else "not reproduced"

    def __str__(self) -> str:
        why = self.only_if or self.outdated_by
        head = f"{self.verdict} ({why})" if why else self.verdict
        return f"{head}: {self.claim}\n    source: {self.source}\n    measured: {self.measured}"


def show_claims(claims: Iterable[Claim]) -> None:
    """Print each claim: its verdict, its source, what was measured. Raises ValueError for one that comes twice."""
    claims = list(claims)
    if twice := {c.claim for c in claims if sum(c.claim == other.claim for other in claims) > 1}:
        raise ValueError(f"tested twice: {', '.join(sorted(twice))}")
    print("\n".join(map(str, claims)))


def read_claims(text: str) -> list[dict[str, str]]:
    """The claims among a printed text, in order: verdict, because, claim, source, measured."""
    names = ("verdict", "because", "claim", "source", "measured")
    return [dict(zip(names, found.groups(default=""), strict=True)) for found in PRINTED.finditer(text)]
