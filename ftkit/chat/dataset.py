"""Checks of the training data: conversations as the template writes them, and the examples tokenised from them.

Shapes: B examples of a batch, T tokens.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from ftkit.conversations import ConversationError, encode
from ftkit.findings import Finding, sort_findings
from ftkit.loss import IGNORE_INDEX

from .findings import finding
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
MAX_PROMPT_CHECKS = 200  # examples whose prompts are rendered a second time: what merges does so in the first of many


def check_labels(tokenizer: PreTrainedTokenizerBase, rows: Iterable[LabelledRow] | Mapping[str, Any]) -> list[Finding]:
    """Check that each example has labels and that they include a token that ends the answer.

    Args:
        rows: examples with `input_ids` and `labels` of T tokens, or a collated (B, T) batch.

    Raises ValueError without examples, or for one that lacks a key.
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
    observed = {
        "all-labels-masked": (empty, f"every label is {IGNORE_INDEX}"),
        "stop-masked-by-pad": (padded, f"{tokenizer.pad_token!r} ends the answer and its label is masked"),
        "stop-not-in-labels": (endless, "no label is a token that ends an answer"),
        "bos-doubled": (doubled, f"the examples begin with {tokenizer.bos_token!r} twice"),
    }
    return [finding(code, f"{describe_rows(ks, len(pairs))}: {text}") for code, (ks, text) in observed.items() if ks]


def describe_rows(rows: list[int], total: int) -> str:
    """The number of rows and the first one, counted from 1 like the lines of a file."""
    return f"{len(rows)} of {total} examples (first: {rows[0] + 1})"


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


def check_dataset(
    tokenizer: PreTrainedTokenizerBase, conversations: Iterable[dict[str, Any]], max_length: int | None = None
) -> list[Finding]:
    """Render and tokenise each conversation (a dict with `messages`) and report what training would lose.

    Args:
        max_length: tokens at which training truncates an example.

    Raises ConversationError without conversations.
    """
    rows = [conversation["messages"] for conversation in conversations]
    if not rows:
        raise ConversationError("no conversations to check: give at least one")
    template, found = find_training_template(tokenizer)
    if own_template(tokenizer) is None:
        return found
    prompt_renderer = Renderer(tokenizer, own_template(tokenizer))
    train_renderer = Renderer(tokenizer, template) if template else prompt_renderer
    by_code: dict[str, dict[int, str]] = defaultdict(dict)  # code -> what was observed, by row
    encoded, prompt_findings = [], []
    for k, messages in enumerate(rows):
        try:
            _compare_texts(k, messages, train_renderer.text(messages), by_code)
            if template:
                encoded.append(_encode(tokenizer, messages, template))
            if k < MAX_PROMPT_CHECKS and not prompt_findings:
                differ = check_generation_prompt(prompt_renderer, train_renderer, messages)
                prompt_findings = [finding(f.code, f"example {k + 1}, {f.observed}") for f in differ]
        except TemplateFailed as error:
            by_code["row-fails"][k] = str(error)
    found += prompt_findings
    for code, by_row in by_code.items():
        found.append(finding(code, f"{describe_rows(list(by_row), len(rows))}: {next(iter(by_row.values()))}"))
    if encoded:
        found += _check_length(encoded, max_length) + check_labels(tokenizer, encoded)
    return sort_findings(found)


def _compare_texts(k: int, messages: Messages, text: str, by_code: dict[str, dict[int, str]]) -> None:
    start = 0
    for message in messages:
        content = message.get("content") or ""
        for code, expected in (("", content), ("text-altered", content.strip())):
            if (at := text.find(expected, start)) >= 0:
                start = at + len(expected)
                if code:
                    by_code[code].setdefault(k, f"the {message['role']}'s {_short(content)} loses space at its ends")
                break
        else:
            by_code["text-lost"].setdefault(k, f"the {message['role']}'s {_short(content)} is not written")
        for call in message.get("tool_calls") or []:
            if (name := call.get("function", call).get("name", "")) not in text:
                by_code["text-lost"].setdefault(k, f"the call of the tool {name!r} is not written")


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:20] + "…" + text[-19:])


def _encode(tokenizer: PreTrainedTokenizerBase, messages: Messages, template: str) -> dict[str, list[int]]:
    try:
        return encode(tokenizer, messages, template)
    except ConversationError:  # no token in the loss: check_labels reports it
        ids = Renderer(tokenizer, template).tokens(messages)
        return {"input_ids": ids, "labels": [IGNORE_INDEX] * len(ids)}


def _check_length(rows: list[dict[str, list[int]]], max_length: int | None) -> list[Finding]:
    if max_length is None:
        return []

    def count_in_loss(labels: list[int]) -> int:
        return sum(label != IGNORE_INDEX for label in labels)

    truncated = [k for k, r in enumerate(rows) if count_in_loss(r["labels"][max_length:])]
    emptied = [k for k in truncated if not count_in_loss(rows[k]["labels"][:max_length])]
    found = []
    if truncated:
        longest = max(len(row["input_ids"]) for row in rows)
        observed = f"{describe_rows(truncated, len(rows))} at max_length {max_length}; the longest has {longest} tokens"
        found.append(finding("answer-cut-off", observed))
    if emptied:
        observed = f"{describe_rows(emptied, len(rows))}: max_length {max_length} leaves none of the answer"
        found.append(finding("all-labels-masked", observed))
    return found
