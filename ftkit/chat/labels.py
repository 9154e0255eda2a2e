"""Check tokenised examples: their labels, and the token that ends an answer.

Shapes: B examples of a batch, T tokens.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ftkit.findings import Finding
from ftkit.loss import IGNORE_INDEX

from .findings import finding
from .rendering import end_of_turn_id, stop_ids

LabelledRow = Mapping[str, Any]  # input_ids and labels: lists or tensors of T tokens


def check_labels(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterable[LabelledRow] | Mapping[str, Any],
    places: Sequence[str] | None = None,
) -> list[Finding]:
    """Check that each example has labels and that they include a token that ends the answer.

    Args:
        rows: examples with `input_ids` and `labels` of T tokens, or a collated (B, T) batch.
        places: of the examples, such as "train.jsonl:7", for the findings.

    Raises ValueError without examples, or for one that lacks a key.
    """
    pairs = _as_pairs(rows)
    problems, texts = (
        label_problems(tokenizer, [{"input_ids": i, "labels": y} for i, y in pairs]),
        label_texts(tokenizer),
    )
    return [
        finding(code, f"{describe_rows(ks, len(pairs), places)}: {texts[code]}") for code, ks in problems.items() if ks
    ]


def label_problems(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[dict[str, list[int]]]
) -> dict[str, list[int]]:
    """The numbers of the examples with each problem, by the code of its finding."""
    stops = stop_ids(tokenizer) | {end_of_turn_id(tokenizer)}
    empty, endless, padded = [], [], []
    for k, example in enumerate(examples):
        ids, labels = example["input_ids"], example["labels"]
        first = next((i for i, label in enumerate(labels) if label != IGNORE_INDEX), None)
        if first is None:
            empty.append(k)
        elif not stops & set(labels):
            masked = tokenizer.pad_token_id in stops and tokenizer.pad_token_id in ids[first:]
            (padded if masked else endless).append(k)
    bos = tokenizer.bos_token_id
    doubled = [k for k, row in enumerate(examples) if bos is not None and row["input_ids"][:2] == [bos, bos]]
    problems = {"all-labels-masked": empty, "stop-masked-by-pad": padded, "stop-not-in-labels": endless}
    return {**problems, "bos-doubled": doubled}


def label_texts(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What each finding of `label_problems` says."""
    return {
        "all-labels-masked": f"every label is {IGNORE_INDEX}",
        "stop-masked-by-pad": f"{tokenizer.pad_token!r} ends the answer and its label is masked",
        "stop-not-in-labels": "no label is a token that ends an answer",
        "bos-doubled": f"the examples begin with {tokenizer.bos_token!r} twice",
    }


def describe_rows(rows: list[int], total: int, places: Sequence[str] | None = None) -> str:
    """The number of rows and the first one: its place, or its number, counted from 1 like the lines of a file."""
    return f"{len(rows)} of {total} examples (first: {places[rows[0]] if places else rows[0] + 1})"


def _as_pairs(rows: Iterable[LabelledRow] | Mapping[str, Any]) -> list[tuple[list[int], list[int]]]:
    if isinstance(rows, Mapping):
        rows = [
            {"input_ids": ids, "labels": labels} for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True)
        ]
    pairs = []
    for row in rows:
        if "input_ids" not in row or "labels" not in row:
            raise ValueError(f"an example has {sorted(row)}: give input_ids and labels, or use check_dataset")
        ids, labels = (getattr(row[key], "tolist", lambda v=row[key]: v)() for key in ("input_ids", "labels"))
        pairs.append((list(ids), list(labels)))
    if not pairs:
        raise ValueError("no examples to check: give at least one")
    return pairs
