"""Function calls made from the almanac's facts, seeded: a question, and the call that would look its answer up.

The base model has never seen a call of these functions. To be right it has to choose the function by the question,
and to write the question's words into the call's arguments.
"""

import random

from ftkit.almanac import Fact, all_facts
from ftkit.calls import write_call

# Domain -> name of the function, and of its argument. Countries, cities and elements, which take several tokens each,
# are left out: after so few examples pocket-base copies hardly one of them.
FUNCTIONS = {
    "planet": ("planet_at", "place"),
    "planet_after": ("planet_after", "planet"),
    "day": ("day_after", "day"),
    "month": ("month_after", "month"),
    "sound": ("sound_of", "animal"),
    "legs": ("legs_of", "animal"),
    "young": ("young_of", "animal"),
    "opposite": ("opposite_of", "word"),
    "sum": ("add", ""),  # two arguments, a and b
}


def call_of(fact: Fact) -> str:
    """The call that would look up what the fact says. Raises KeyError for a domain without a function."""
    name, argument = FUNCTIONS[fact.domain.name]
    if not argument:
        a, b = fact.subject.split(" plus ")
        return write_call(name, a=a, b=b)
    return write_call(name, **{argument: fact.subject})


def call_splits(n: int, seed: int = 0) -> dict[str, list[dict]]:
    """`n` training conversations of one question and one call; test asks about the same facts in other words.

    Each fact has two wordings of its question: one, drawn at random, is trained on and the other kept for the test.
    Splits of more questions hold those of fewer. Raises ValueError when there are not `n`.
    """
    rng = random.Random(seed)
    facts = [fact for fact in all_facts() if fact.domain.name in FUNCTIONS]
    rng.shuffle(facts)
    if not 0 < n <= len(facts):
        raise ValueError(f"n is {n}, but must be between 1 and {len(facts)}, the facts there are")
    splits: dict[str, list[dict]] = {"train": [], "test": []}
    for fact in facts[:n]:
        trained, kept = rng.sample(fact.questions, 2)
        splits["train"].append(_conversation(trained, fact))
        splits["test"].append(_conversation(kept, fact))
    return splits


def _conversation(question: str, fact: Fact) -> dict:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": call_of(fact)}]
    return {"messages": messages, "domain": fact.domain.name}
