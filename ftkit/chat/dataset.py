"""Tokenised rows as a training loop gets them: is there something to learn in each, and its end?

Shapes: T tokens of a row, B rows of a batch.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from ftkit.conversations import ConversationError, encode
from ftkit.loss import IGNORE_INDEX

from .findings import Finding, finding, sort_findings
from .rendering import (
    Messages,
    Renderer,
    TemplateFailed,
    end_of_turn_id,
    find_training_template,
    own_template,
    stop_ids,
)
from .template import check_generation_prompt

LabelledRow = Mapping[str, Any]  # input_ids and labels: lists or tensors of T tokens


def check_labels(tokenizer: PreTrainedTokenizerBase, rows: Iterable[LabelledRow] | Mapping[str, Any]) -> list[Finding]:
    """Check `input_ids` and `labels`, in rows of T or as the (B, T) batch that a collator made of them.

    Raises ValueError where there is no row, or one without the two keys.
    """
    pairs = _as_pairs(rows)
    stops = stop_ids(tokenizer) | {end_of_turn_id(tokenizer)}
    empty = [k for k, (_, labels) in enumerate(pairs) if all(label == IGNORE_INDEX for label in labels)]
    endless, padded = [], []
    for k, (ids, labels) in enumerate(pairs):
        if k in set(empty) or stops & set(labels):
            continue
        last = max(i for i, label in enumerate(labels) if label != IGNORE_INDEX)
        after = ids[last + 1] if last + 1 < len(ids) else None
        masked = after is not None and after in stops and after == tokenizer.pad_token_id
        (padded if masked else endless).append(k)
    bos = tokenizer.bos_token_id
    doubled = [k for k, (ids, _) in enumerate(pairs) if bos is not None and ids[:2] == [bos, bos]]
    seen = {
        "all-labels-masked": (empty, f"every label is {IGNORE_INDEX}"),
        "stop-masked-by-pad": (padded, f"{tokenizer.pad_token!r} ends the answer and its label is masked"),
        "stop-not-in-labels": (endless, "no label is a token that ends an answer"),
        "bos-doubled": (doubled, f"they begin with {tokenizer.bos_token!r} twice"),
    }
    return [finding(code, f"{describe_rows(ks, len(pairs))}: {text}") for code, (ks, text) in seen.items() if ks]


def describe_rows(rows: list[int], total: int) -> str:
    """How many rows and the first of them, counted from 1 as the lines of a file are."""
    return f"{len(rows)} of {total} rows (first: {rows[0] + 1})"


def _as_pairs(rows: Iterable[LabelledRow] | Mapping[str, Any]) -> list[tuple[list[int], list[int]]]:
    if isinstance(rows, Mapping):
        rows = [
            {"input_ids": ids, "labels": labels} for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True)
        ]
    pairs = []
    for row in rows:
        if "input_ids" not in row or "labels" not in row:
            raise ValueError(f"a row has {sorted(row)}: give input_ids and labels, or use check_dataset")
        ids, labels = (getattr(row[key], "tolist", lambda v=row[key]: v)() for key in ("input_ids", "labels"))
        pairs.append((list(ids), list(labels)))
    if not pairs:
        raise ValueError("no rows to check: give at least one")
    return pairs


# Rows whose prompts are rendered a second time; what merges does so in the first of many rows.
BOUNDARIES_OF = 200


def check_dataset(
    tokenizer: PreTrainedTokenizerBase, conversations: Iterable[dict[str, Any]], max_length: int | None = None
) -> list[Finding]:
    """Write each conversation (a dict with `messages`) as tokens and labels, and look for what is lost on the way.

    `max_length` in tokens, as the training will have it. Raises ConversationError where there is none.
    """
    rows = [conversation["messages"] for conversation in conversations]
    if not rows:
        raise ConversationError("no conversations to check: give at least one")
    template, found = find_training_template(tokenizer)
    if own_template(tokenizer) is None:
        return found
    own = Renderer(tokenizer, own_template(tokenizer))
    trained = Renderer(tokenizer, template) if template else own
    seen: dict[str, dict[int, str]] = defaultdict(dict)  # code: what was seen, by row
    encoded, boundary = [], []  # the rows as tokens; the first boundary that differs
    for k, messages in enumerate(rows):
        try:
            _compare_texts(k, messages, trained.text(messages), seen)
            if template:
                encoded.append(_encode(tokenizer, messages, template))
            if k < BOUNDARIES_OF and not boundary:
                boundary = [
                    finding(f.code, f"row {k + 1}, {f.seen}") for f in check_generation_prompt(own, trained, messages)
                ]
        except TemplateFailed as error:
            seen["row-fails"][k] = str(error)
    found += boundary
    for code, by_row in seen.items():
        found.append(finding(code, f"{describe_rows(list(by_row), len(rows))}: {next(iter(by_row.values()))}"))
    if encoded:
        found += _check_length(encoded, max_length) + check_labels(tokenizer, encoded)
    return sort_findings(found)


def _compare_texts(k: int, messages: Messages, text: str, seen: dict[str, dict[int, str]]) -> None:
    start = 0
    for message in messages:
        content = message.get("content") or ""
        for code, wanted in (("", content), ("text-altered", content.strip())):
            if (at := text.find(wanted, start)) >= 0:
                start = at + len(wanted)
                if code:
                    seen[code].setdefault(k, f"the {message['role']}'s {_short(content)} loses space at its ends")
                break
        else:
            seen["text-lost"].setdefault(k, f"the {message['role']}'s {_short(content)} is not written")
        for call in message.get("tool_calls") or []:
            if (name := call.get("function", call).get("name", "")) not in text:
                seen["text-lost"].setdefault(k, f"the call of the tool {name!r} is not written")


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:20] + "…" + text[-19:])


def _encode(tokenizer: PreTrainedTokenizerBase, messages: Messages, template: str) -> dict[str, list[int]]:
    try:
        return encode(tokenizer, messages, template)
    except ConversationError:  # nothing of it is in the loss: a finding here, not an end
        ids = Renderer(tokenizer, template).tokens(messages)
        return {"input_ids": ids, "labels": [IGNORE_INDEX] * len(ids)}


def _check_length(rows: list[dict[str, list[int]]], max_length: int | None) -> list[Finding]:
    if max_length is None:
        return []

    def learnt(labels: list[int]) -> int:
        return sum(label != IGNORE_INDEX for label in labels)

    cut = [k for k, r in enumerate(rows) if learnt(r["labels"][max_length:])]
    gone = [k for k in cut if not learnt(rows[k]["labels"][:max_length])]
    found = []
    if cut:
        longest = max(len(row["input_ids"]) for row in rows)
        seen = f"{describe_rows(cut, len(rows))} at max_length {max_length}; the longest row has {longest} tokens"
        found.append(finding("answer-cut-off", seen))
    if gone:
        seen = f"{describe_rows(gone, len(rows))}: max_length {max_length} leaves none of the answer"
        found.append(finding("all-labels-masked", seen))
    return found
