"""The conversations of a comparison: the almanac's two sets by name, or a user's own file or folder."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ftcourse.datasets import call_splits, low_resource_chat
from ftcourse.studies.tasks import epochs
from ftkit.batching import Example
from ftkit.conversations import encode, find_chat, read_conversations
from ftkit.loss import IGNORE_INDEX

ALMANAC = {"chat": low_resource_chat, "calls": call_splits}
HELD_OUT = 0.1  # of a user's conversations that have no test split
MOST_TESTS = 200  # conversations in the evaluation
OWN_EPOCHS = 3  # passes over a user's own data


@dataclass(frozen=True)
class Conversations:
    train: list[Example]
    test: list[Example]
    prompts: list[list[dict[str, Any]]]  # the test's, up to the last assistant turn
    references: list[str]  # what that turn should say
    epochs: int


def load_conversations(name: str, tokenizer: PreTrainedTokenizerBase, seed: int) -> Conversations:
    """ "chat-N" or "calls-N" of the almanac, else what `find_chat` finds; the tokenizer's template marks the answers.

    The seed chooses rows, and what is held out for the test where there is no split of that name. Raises
    FileNotFoundError, ConversationError or ValueError for what cannot be compared on.
    """
    if of_almanac := _of_almanac(name):
        make_splits, n = of_almanac
        splits, passes = make_splits(n, seed), epochs(n)
    else:
        splits, passes = _own_splits(name, seed), OWN_EPOCHS
    tests = [messages for row in splits["test"][:MOST_TESTS] if (messages := _to_last_answer(row["messages"]))]
    if not tests:
        raise ValueError(f"{name}: no conversation to test on has an assistant turn that answers something")

    def rows(conversations: Sequence[list[dict]]) -> list[Example]:
        return [encode(tokenizer, messages, tokenizer.chat_template) for messages in conversations]

    test = rows(tests)
    return Conversations(
        train=rows([row["messages"] for row in splits["train"]]),
        test=test,
        prompts=[messages[:-1] for messages in tests],
        references=[_text(tokenizer, *pair) for pair in zip(tests, test, strict=True)],
        epochs=passes,
    )


def digest(name: str) -> str:
    """Of a user's files: records are for these rows and no others. "" for the almanac's sets."""
    if _of_almanac(name):
        return ""
    files = find_chat(name)
    return hashlib.sha256(b"".join(files[split].read_bytes() for split in sorted(files))).hexdigest()[:12]


def _of_almanac(name: str) -> tuple[Callable[[int, int], dict[str, list[dict]]], int] | None:
    """What makes the set and how many rows it is to have; None where the name is of a user's data."""
    kind, _, n = name.partition("-")
    return (ALMANAC[kind], int(n)) if kind in ALMANAC and n.isdecimal() else None


def _own_splits(name: str, seed: int) -> dict[str, list[dict]]:
    files = find_chat(name)
    if "train" not in files:
        raise ValueError(f"{name} has no train.jsonl: it has {', '.join(path.name for path in files.values())}")
    train = read_conversations(files["train"])
    if "test" in files:
        return {"train": train, "test": read_conversations(files["test"])}
    if len(train) < 2:
        raise ValueError(f"{files['train']} has one conversation: at least two are wanted, one of them to test on")
    random.Random(seed).shuffle(train)
    cut = max(1, round(HELD_OUT * len(train)))
    return {"train": train[cut:], "test": train[:cut]}


def _to_last_answer(messages: list[dict]) -> list[dict]:
    """Without what follows the last assistant turn; nothing where that turn is the first."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return messages[: last + 1] if last else []


def _text(tokenizer: PreTrainedTokenizerBase, messages: list[dict], row: Example) -> str:
    """What the last turn says; where it is no text but tool calls, as the template writes them."""
    if isinstance(messages[-1].get("content"), str):
        return messages[-1]["content"].strip()
    labels = row["labels"]
    end = max(i for i, label in enumerate(labels) if label != IGNORE_INDEX)
    start = max((i for i in range(end) if labels[i] == IGNORE_INDEX), default=-1) + 1
    return tokenizer.decode(labels[start : end + 1], skip_special_tokens=True).strip()
