"""Conversations and a classification task made from the almanac's facts, seeded.

`python -m ftcourse.datasets` writes them into `data/` as JSON lines.
"""

import argparse
import json
import random
from pathlib import Path

from ftkit.models import data_dir

from .almanac import Fact, all_facts, load_almanac
from .tool_calls import write_call

# The chat fine-tune never sees these domains: they tell whether what was learned is the form of an answer
# (which carries over) or its content.
HELDOUT_DOMAINS = ("planet_after", "month", "young", "symbol")


def _conversation(turns: list[tuple[str, str]], domain: str) -> dict:
    messages = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "domain": domain}


def chat_splits(seed: int = 0) -> dict[str, list[dict]]:
    """Conversations with `messages` and `domain`.

    train: single- and multi-turn, over 70 % of the facts of the training domains; test: the other 30 % of
    those facts, one question each; heldout_domains: every fact of `HELDOUT_DOMAINS`, one question each.
    A follow-up turn ("And of Italy?") can only be answered by reading the turn before it.
    """
    rng = random.Random(seed)
    splits: dict[str, list[dict]] = {"train": [], "test": [], "heldout_domains": []}
    for domain in load_almanac().values():
        facts = [Fact(domain, s, v) for s, v in domain.facts.items()]
        rng.shuffle(facts)
        single = [_conversation([(rng.choice(f.questions), f.answer)], domain.name) for f in facts]
        if domain.name in HELDOUT_DOMAINS:
            splits["heldout_domains"] += single
            continue
        cut = round(0.7 * len(facts))
        splits["test"] += single[cut:]
        for fact in facts[:cut]:
            splits["train"] += [_conversation([(q, fact.answer)], domain.name) for q in fact.questions]
        for first in facts[:cut]:
            others = rng.sample(facts[:cut], k=min(rng.randrange(1, 3), cut))
            turns = [(rng.choice(first.questions), first.answer)]
            turns += [(f.write(domain.follow_up), f.answer) for f in others if f is not first]
            if len(turns) > 1:
                splits["train"].append(_conversation(turns, domain.name))
    for rows in splits.values():
        rng.shuffle(rows)
    return splits


def low_resource_chat(n: int, seed: int = 0) -> dict[str, list[dict]]:
    """`n` of the single-turn conversations of `chat_splits(seed)`'s training part; its other splits are whole.

    Splits of more questions hold those of fewer. Raises ValueError when there are not `n`.
    """
    splits = chat_splits(seed)
    questions = [row for row in splits["train"] if len(row["messages"]) == 2]
    if not 0 < n <= len(questions):
        raise ValueError(f"n is {n}, but must be between 1 and {len(questions)}, the questions there are")
    return {**splits, "train": questions[:n]}


def validation_facts() -> set[tuple[str, str]]:
    """A third of the almanac's facts, each (domain, subject), the same for every seed.

    A setting that was chosen on them under one seed has therefore not seen the test facts of another.

    Facts that say the same the other way round ("hot is the opposite of cold") are on the same side.
    """
    rng = random.Random(0)
    groups = list(_related_facts().values())
    thirds = [rng.choice(groups[first : first + 3]) for first in range(0, len(groups), 3)]
    return {(fact.domain.name, fact.subject) for group in thirds for fact in group}


def chat_with_validation(n: int, seed: int = 0) -> dict[str, list[dict]]:
    """`low_resource_chat(n, seed)` with its test facts divided: a third for `validation`, the others for `test`.

    Each fact of the two is asked in all its wordings. No fact of `validation` is in `test` under any seed. Raises
    ValueError as `low_resource_chat` does.
    """
    splits = low_resource_chat(n, seed)
    asked = {question: fact for fact in all_facts() for question in fact.questions}
    chosen = validation_facts()
    divided: dict[str, list[dict]] = {"validation": [], "test": []}
    for row in splits["test"]:
        fact = asked[row["messages"][0]["content"]]
        rows = [_conversation([(question, fact.answer)], fact.domain.name) for question in fact.questions]
        divided["validation" if (fact.domain.name, fact.subject) in chosen else "test"] += rows
    return {**splits, **divided}


def truth_with_validation(
    n_train: int, seed: int = 0, n_validation: int = 200, n_test: int = 500
) -> dict[str, list[dict]]:
    """`truth_task` with a `validation` split; the training rows are the same.

    No fact of `validation` is in `test` under any seed. Raises ValueError as `truth_task` does.
    """
    rng = random.Random(seed)
    train, held_out = _truth_facts(rng)
    chosen = validation_facts()
    divided: dict[str, list[Fact]] = {"validation": [], "test": []}
    for fact in held_out:
        divided["validation" if (fact.domain.name, fact.subject) in chosen else "test"].append(fact)
    parts = {
        "train": (n_train, train),
        "validation": (n_validation, divided["validation"]),
        "test": (n_test, divided["test"]),
    }
    return {split: _statement_pairs(facts, n, rng) for split, (n, facts) in parts.items()}


def truth_task(n_train: int = 1000, seed: int = 0, n_test: int = 1000) -> dict[str, list[dict]]:
    """Rows of `text` (a statement, then a true sentence) and `label`: is the statement "true" or "false"?

    Half and half; no statement repeats. The sentence after it stands between the statement and the last
    token, so a head on frozen features, which reads there, learns little; the whole model can learn to look
    back. Train and test are about different facts: the answer must come from what the base model knows.
    """
    rng = random.Random(seed)
    train, test = _truth_facts(rng)
    return {"train": _statement_pairs(train, n_train, rng), "test": _statement_pairs(test, n_test, rng)}


def _related_facts() -> dict[tuple[str, ...], list[Fact]]:
    """The facts by what they are about: "hot is the opposite of cold" and "cold is the opposite of hot" are one."""
    groups: dict[tuple[str, ...], list[Fact]] = {}
    for fact in all_facts():
        groups.setdefault(tuple(sorted((fact.subject, fact.value))), []).append(fact)
    return groups


def _truth_facts(rng: random.Random) -> tuple[list[Fact], list[Fact]]:
    """Two halves of the facts; related ones stay on the same side."""
    groups = _related_facts()
    keys = sorted(groups)
    rng.shuffle(keys)
    half = len(keys) // 2
    train, test = ([fact for key in part for fact in groups[key]] for part in (keys[:half], keys[half:]))
    return train, test


def _statement_pairs(facts: list[Fact], n: int, rng: random.Random) -> list[dict]:
    """Labelled statements, each followed by a true sentence."""
    rows = labelled_statements(facts, n, rng)
    for row in rows:
        after = rng.choice(facts)
        row["text"] += " " + after.write(rng.choice(after.domain.statements))
    return rows


def labelled_statements(facts: list[Fact], n: int, rng: random.Random) -> list[dict]:
    """`n` different statements about `facts` as rows of `text` and `label`, half of them true.

    Raises ValueError when the facts make too few true ones.
    """
    true = sorted({fact.write(template) for fact in facts for template in fact.domain.statements})
    if len(true) < n // 2:
        raise ValueError(f"{n} rows need {n // 2} true statements, and these facts make {len(true)}")
    texts = rng.sample(true, n // 2)
    false: set[str] = set()
    while len(false) < n - len(texts):
        fact = rng.choice(facts)
        false.add(fact.write(rng.choice(fact.domain.statements), fact.wrong_value(rng)))
    rows = [{"text": t, "label": "true"} for t in texts]
    rows += [{"text": t, "label": "false"} for t in sorted(false)]
    rng.shuffle(rows)
    return rows


def _split(rows: list[dict], n_train: int, rng: random.Random) -> dict[str, list[dict]]:
    rng.shuffle(rows)
    return {"train": rows[:n_train], "test": rows[n_train:]}


def write_sets(folder: Path) -> list[Path]:
    """Write every set as JSON lines under `folder`; the same bytes each time."""
    sets = {"chat": chat_splits(), "truth": truth_task()}
    written = []
    for name, splits in sets.items():
        for split, rows in splits.items():
            path = folder / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the almanac's chats and its classification task.")
    parser.add_argument("--output", type=Path, default=data_dir(), help="folder to write into (default: data/)")
    for path in write_sets(parser.parse_args().output):
        print(path, sum(1 for _ in path.open(encoding="utf-8")), "rows")


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
        splits["train"].append(_call_conversation(trained, fact))
        splits["test"].append(_call_conversation(kept, fact))
    return splits


def _call_conversation(question: str, fact: Fact) -> dict:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": call_of(fact)}]
    return {"messages": messages, "domain": fact.domain.name}


if __name__ == "__main__":
    main()
