"""The almanac's sets are balanced, disjoint, and the same every time."""

import pytest

from ftcourse.almanac import all_facts, load_almanac
from ftcourse.datasets import (
    HELDOUT_DOMAINS,
    chat_splits,
    chat_with_validation,
    low_resource_chat,
    truth_task,
    truth_with_validation,
    validation_facts,
    write_sets,
)
from ftkit.models import data_dir

DOMAINS = load_almanac()


def test_chat_splits_hold_out_questions_and_domains():
    splits = chat_splits()
    answers = {
        split: {m["content"] for row in rows for m in row["messages"] if m["role"] == "assistant"}
        for split, rows in splits.items()
    }
    assert not answers["train"] & answers["test"]
    assert not answers["train"] & answers["heldout_domains"]
    assert {row["domain"] for row in splits["heldout_domains"]} == set(HELDOUT_DOMAINS)
    assert {row["domain"] for row in splits["test"]} == set(DOMAINS) - set(HELDOUT_DOMAINS)
    turns = [len(row["messages"]) for row in splits["train"]]
    assert set(turns) == {2, 4, 6}
    assert chat_splits(seed=1)["train"] != splits["train"]


def test_follow_ups_need_the_turn_before():
    rows = [row for row in chat_splits()["train"] if len(row["messages"]) > 2]
    first_words = {row["messages"][2]["content"].split()[0] for row in rows}
    assert first_words == {"And"}


@pytest.mark.parametrize("n", [96, 200, 500])
def test_low_resource_chat_takes_single_questions_and_keeps_what_is_held_out(n):
    sets, whole = low_resource_chat(n, seed=3), chat_splits(seed=3)
    assert len(sets["train"]) == n and {len(row["messages"]) for row in sets["train"]} == {2}
    assert sets["train"] == low_resource_chat(n + 1, seed=3)["train"][:n]
    assert (sets["test"], sets["heldout_domains"]) == (whole["test"], whole["heldout_domains"])
    questions = [row["messages"][0]["content"] for rows in sets.values() for row in rows]
    assert len(set(questions)) == len(questions)


@pytest.mark.parametrize("n", [0, 10_000])
def test_low_resource_chat_refuses_what_there_is_not(n):
    with pytest.raises(ValueError, match="must be between 1 and 5"):
        low_resource_chat(n)


@pytest.mark.parametrize("n", [100, 1000])
def test_truth_task_is_balanced_true_and_about_other_facts(n):
    sets = truth_task(n)
    true_of = {fact.write(t): fact for fact in all_facts() for t in fact.domain.statements}

    def known(row: dict) -> set[frozenset]:
        """The facts that a row's opening words state truly: none when its statement is false."""
        starts = [fact for text, fact in true_of.items() if row["text"].startswith(text + " ")]
        return {frozenset((fact.subject, fact.value)) for fact in starts}

    for rows in sets.values():
        assert sum(row["label"] == "true" for row in rows) == len(rows) // 2
        assert all(bool(known(row)) == (row["label"] == "true") for row in rows)
        assert all(any(row["text"].endswith(" " + text) for text in true_of) for row in rows)
    train, test = (set().union(*map(known, sets[split])) for split in ("train", "test"))
    assert train and not train & test


def test_committed_sets_are_what_the_program_writes(tmp_path):
    for path in write_sets(tmp_path):
        committed = data_dir() / path.relative_to(tmp_path)
        assert committed.read_bytes() == path.read_bytes(), f"run python -m ftcourse.datasets: {path.name} is stale"


@pytest.mark.parametrize("n", [96, 500])
def test_chat_validation_and_test_share_nothing_under_any_seeds(n):
    answers = {"validation": set(), "test": set()}
    for seed in (0, 1, 100):
        sets, whole = chat_with_validation(n, seed), low_resource_chat(n, seed)
        assert (sets["train"], sets["heldout_domains"]) == (whole["train"], whole["heldout_domains"])
        questions = [row["messages"][0]["content"] for rows in sets.values() for row in rows]
        assert len(set(questions)) == len(questions)
        held_out = {row["messages"][1]["content"] for split in answers for row in sets[split]}
        assert held_out == {row["messages"][1]["content"] for row in whole["test"]}
        assert not held_out & {row["messages"][1]["content"] for row in sets["train"]}
        for split, found in answers.items():
            found |= {row["messages"][1]["content"] for row in sets[split]}
        assert 50 <= len(sets["validation"]) <= 100 and len(sets["validation"]) + len(sets["test"]) == 216
        assert len({row["domain"] for row in sets["validation"]}) > 8
    assert not answers["validation"] & answers["test"]
    several = [low_resource_chat(n, seed)["test"] for seed in (0, 1)]
    first, second = ({row["messages"][1]["content"] for row in rows} for rows in several)
    assert first & second  # so that the facts had to be divided alike under every seed


def test_truth_validation_and_test_share_no_statement_under_any_seeds():
    found = {"validation": set(), "test": set()}
    for seed in (0, 1, 100):
        sets = truth_with_validation(500, seed)
        assert sets["train"] == truth_task(500, seed)["train"]
        assert {split: len(rows) for split, rows in sets.items()} == {"train": 500, "validation": 200, "test": 500}
        assert all(sum(row["label"] == "true" for row in rows) == len(rows) // 2 for rows in sets.values())
        for split in found:
            found[split] |= {row["text"] for row in sets[split] if row["label"] == "true"}
    chosen, facts = [f for f in all_facts() if (f.domain.name, f.subject) in validation_facts()], all_facts()
    stated = {
        side: {f.write(t) for f in facts for t in f.domain.statements if (f in chosen) == inside}
        for side, inside in (("validation", True), ("test", False))
    }
    for split, texts in found.items():
        assert all(any(text.startswith(each + " ") for each in stated[split]) for text in texts)
    assert 0.3 < len(chosen) / len(facts) < 0.37
    pairs = {frozenset((f.subject, f.value)) for f in chosen}
    assert not pairs & {frozenset((f.subject, f.value)) for f in facts if f not in chosen}
