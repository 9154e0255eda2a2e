"""The almanac: a small world of true facts, and the corpus that they are written out as.

The facts and their sentence templates live in `data/almanac.json`. Everything here is a seeded, pure function
of that file; `ftcourse.datasets` makes conversations and classification data from the same facts.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ftkit.models import data_dir


@dataclass(frozen=True)
class Domain:
    """One kind of fact. Templates hold {s} (subject), {S} (the same, capitalised) and {v} (value)."""

    name: str
    topic: str
    questions: tuple[str, ...]
    answer: str
    statements: tuple[str, ...]
    follow_up: str
    facts: dict[str, str]  # subject -> value


@dataclass(frozen=True)
class Fact:
    domain: Domain
    subject: str
    value: str

    def write(self, template: str, value: str | None = None) -> str:
        """Fill a template in; `value` replaces the true value, which makes a false statement."""
        capital = self.subject[0].upper() + self.subject[1:]
        text = template.format(s=self.subject, S=capital, v=value or self.value)
        return text if self.domain.topic == "code" else text[0].upper() + text[1:]

    @property
    def questions(self) -> list[str]:
        return [self.write(template) for template in self.domain.questions]

    @property
    def answer(self) -> str:
        return self.write(self.domain.answer)

    def wrong_value(self, rng: random.Random) -> str:
        return rng.choice(sorted({*self.domain.facts.values()} - {self.value}))


def load_almanac(path: Path | None = None) -> dict[str, Domain]:
    raw = json.loads((path or data_dir() / "almanac.json").read_text(encoding="utf-8"))["domains"]
    return {
        name: Domain(name=name, **{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
        for name, fields in raw.items()
    }


def all_facts(domains: dict[str, Domain] | None = None) -> list[Fact]:
    domains = domains or load_almanac()
    return [Fact(domain, s, v) for domain in domains.values() for s, v in domain.facts.items()]


def faq_prompt(question: str) -> str:
    """How the corpus asks: the base model completes this with a space and the answer."""
    return f"Q: {question}\nA:"


def corpus(documents: int, seed: int = 0) -> Iterator[str]:
    """Yield `documents` pages of the almanac's world: FAQ pages, prose, quizzes and true-or-false pages.

    Pages are long, so that a model of them goes on after an answer rather than ending the page.
    """
    rng = random.Random(seed)
    domains = list(load_almanac().values())
    # Domains weigh by the square root of their size, so that 100 sums do not crowd out 4 lists.
    weights = [len(domain.facts) ** 0.5 for domain in domains]
    facts = {domain.name: [Fact(domain, s, v) for s, v in domain.facts.items()] for domain in domains}

    def pick(count: int) -> list[Fact]:
        return [rng.choice(facts[d.name]) for d in rng.choices(domains, weights, k=count)]

    def statement(fact: Fact, value: str | None = None) -> str:
        return fact.write(rng.choice(fact.domain.statements), value)

    def faq() -> str:
        return "\n".join(f"{faq_prompt(rng.choice(f.questions))} {f.answer}" for f in pick(rng.randrange(8, 15)))

    def quiz() -> str:
        rows = enumerate(pick(rng.randrange(6, 13)), start=1)
        return "Quiz\n" + "\n".join(f"{i}. {rng.choice(f.questions)} {f.answer}" for i, f in rows)

    def prose() -> str:
        if rng.random() < 0.5:
            return " ".join(statement(fact) for fact in pick(rng.randrange(8, 17)))
        topic = rng.choice(sorted({d.topic for d in domains}))
        pool = [fact for d in domains if d.topic == topic for fact in facts[d.name]]
        return " ".join(statement(fact) for fact in rng.choices(pool, k=rng.randrange(8, 17)))

    def true_or_false() -> str:
        lines = ["True or false?"]
        for fact in pick(rng.randrange(8, 15)):
            true = rng.random() < 0.5
            lines.append(f"{statement(fact, None if true else fact.wrong_value(rng))} {true}.")
        return "\n".join(lines)

    for _ in range(documents):
        yield rng.choices((faq, prose, quiz, true_or_false), (0.4, 0.18, 0.07, 0.35))[0]()
