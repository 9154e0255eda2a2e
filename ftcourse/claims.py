"""The claims ledger: what a source claims, on which model it was tested, what was measured, and the verdict.

A notebook makes one `Ledger`, adds each claim where it tests it, and shows them once, in its recap. What it showed
is all that data/claims.json and docs/claims.md are made from (notebooks/ledger.py), so a verdict is computed by a
cell or it is nowhere.
"""

import re
import sys
from dataclasses import dataclass

from .claim_cards import ClaimCards
from .intervals import Interval

VERDICTS = ("supported", "supported under conditions", "refuted", "inconclusive", "outdated", "not tested")
# As docs/claims.md sorts them.
TOPICS = (
    "child-tuning",
    "freezing",
    "chat data and evaluation",
    "learning rate and optimizer",
    "LoRA and its relatives",
    "speed and memory",
    "distributed training",
)
POCKET = "pocket-base, 1.0 M parameters"
EXACT = "any model: an identity or a count"
PRINTED = re.compile(
    rf"^({'|'.join(VERDICTS)})(?: \((.+?)\))?: (.+)\n    topic: (.+)\n    source: (.+)\n"
    r"    tested on: (.+?)(?:; (\d+) seeds?)?\n    measured: (.+)$",
    re.M,
)


@dataclass(frozen=True)
class Claim:
    """A claim and the outcome of its test. Every text is one line and not empty, but for the two qualifications.

    Attributes:
        claim: as its source makes it.
        source: who makes it and where, as short as a reader can follow.
        held: computed by a test, never typed in. A truth for what one run decides. An `Interval` for an effect over
            seeds, positive where the claim is right: supported if it lies above 0, refuted if it lies below
            `worthwhile`, otherwise inconclusive. None if there is no run to judge yet; `measured` then names the
            command that makes one.
        measured: the effect, with units and interval; rounded so that it is the same on every machine.
        topic: one of TOPICS.
        model: what it was tested on, and its size.
        seeds: runs that differ in the seed alone; 0 where chance plays no part.
        worthwhile: the smallest effect that would make the claim useful, in the interval's unit.
        only_if: it is supported, but only under this condition.
        outdated_by: it was true until this change.

    Raises:
        ValueError: a text is empty or has several lines, the topic is not in TOPICS, or a qualification contradicts
            the verdict.
    """

    claim: str
    source: str
    held: bool | Interval | None
    measured: str
    topic: str
    model: str
    seeds: int = 0
    worthwhile: float = 0.0
    only_if: str = ""
    outdated_by: str = ""

    def __post_init__(self):
        if not isinstance(self.held, Interval | None):
            object.__setattr__(self, "held", bool(self.held))  # torch's and numpy's truths too
        for name in ("claim", "source", "measured", "model", "only_if", "outdated_by"):
            text = getattr(self, name)
            if len(text.splitlines()) > 1 or text != text.strip() or not (text or name.endswith(("if", "by"))):
                raise ValueError(f"{name} is {text!r}: give one line of text, without space around it")
        if self.topic not in TOPICS:
            raise ValueError(f"the topic is {self.topic!r}: give one of {', '.join(TOPICS)}")
        if "): " in self.only_if + self.outdated_by:
            raise ValueError("a condition may not hold '): ', which ends it where it is printed")
        if re.search(r"; \d+ seeds?$", self.model):
            raise ValueError(f"model is {self.model!r}: give the seeds as `seeds`")
        if self.only_if and self._outcome != "supported":
            raise ValueError(f"{self.claim!r} is {self._outcome}, so `only_if` has nothing to narrow")
        if self.outdated_by and self._outcome != "refuted":
            raise ValueError(f"{self.claim!r} is {self._outcome}, so it is not outdated")

    @property
    def _outcome(self) -> str:
        if self.held is None:
            return "not tested"
        if isinstance(self.held, Interval):
            if self.held.low > 0:
                return "supported"
            return "refuted" if self.held.high < self.worthwhile else "inconclusive"
        return "supported" if self.held else "refuted"

    @property
    def verdict(self) -> str:
        """One of VERDICTS."""
        if self.only_if:
            return "supported under conditions"
        return "outdated" if self.outdated_by else self._outcome

    def __str__(self) -> str:
        why = self.only_if or self.outdated_by
        head = f"{self.verdict} ({why})" if why else self.verdict
        seeds = f"; {self.seeds} seed{'s' if self.seeds > 1 else ''}" if self.seeds else ""
        return (
            f"{head}: {self.claim}\n    topic: {self.topic}\n    source: {self.source}\n"
            f"    tested on: {self.model}{seeds}\n    measured: {self.measured}"
        )


class Ledger:
    """A notebook's claims, of one topic and one model unless a claim says otherwise."""

    def __init__(self, topic: str, model: str = POCKET):
        self.topic, self.model = topic, model
        self.claims: list[Claim] = []

    def add(self, claim: str, source: str, held: bool | Interval | None, measured: str, **details) -> Claim:
        """Add a claim and return it; `details` are `Claim`'s. Raises ValueError for one that comes twice."""
        if claim in (other.claim for other in self.claims):
            raise ValueError(f"tested twice: {claim}")
        made = Claim(claim, source, held, measured, **{"topic": self.topic, "model": self.model, **details})
        self.claims.append(made)
        return made

    def show(self) -> None:
        """Show each claim with its verdict, topic, source, model and seeds, and what was measured: in a notebook as
        cards whose plain text is what a program prints."""
        text = "\n".join(map(str, self.claims))
        if "IPython" in sys.modules and sys.modules["IPython"].get_ipython():
            from IPython.display import display

            display(ClaimCards(text, read_claims(text)))
        else:
            print(text)


def read_claims(text: str) -> list[dict[str, str]]:
    """The claims among a printed text, in order: verdict, because, claim, topic, source, model, seeds, measured."""
    names = ("verdict", "because", "claim", "topic", "source", "model", "seeds", "measured")
    return [dict(zip(names, found.groups(default=""), strict=True)) for found in PRINTED.finditer(text)]
