"""Check conversations as the training template writes them, and tokenise them on the way."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ftkit.conversations.encoding import EncodedText, encode_rendered, make_example
from ftkit.conversations.errors import ConversationError
from ftkit.conversations.rendering import ChatTemplate, TemplateFailed, own_template
from ftkit.conversations.turns import RenderedText, render_with_loss
from ftkit.findings import Finding, sort_findings
from ftkit.loss import IGNORE_INDEX

from .findings import finding
from .labels import check_labels, describe_rows
from .rendering import find_training_template
from .row import check_row
from .template import check_generation_prompt, describe_turns

MAX_PROMPT_CHECKS = 200  # examples whose prompts are tokenised too: what merges does so in the first of many
CHUNK = 1000  # examples tokenised at a time
LONG = 1_000_000  # characters; of a longer text no more are tokenised, because training truncates it anyway


@dataclass(frozen=True)
class Examined:
    """A data set, tokenised and checked."""

    findings: list[Finding]
    examples: list[dict[str, list[int]]]  # input_ids and labels, whole; without rows that the template refuses
    lengths: list[int]  # in tokens


def check_dataset(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Iterable[dict[str, Any]],
    max_length: int | None = None,
    model: PreTrainedModel | None = None,
) -> list[Finding]:
    """Render and tokenise each conversation (a dict with `messages`) and report what training would lose.

    Args:
        max_length: tokens at which training truncates an example.
        model: for the number of its positions.

    Raises ConversationError without conversations.
    """
    return examine(tokenizer, list(conversations), max_length, positions=model and max_positions(model.config)).findings


def examine(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    max_length: int | None = None,
    *,
    positions: int | None = None,
    places: Sequence[str] | None = None,
    progress: bool = False,
) -> Examined:
    """As `check_dataset`, with the tokenised examples.

    Args:
        rows: dicts with `messages` and optional `tools` and `chat_template_kwargs`, or with `text`.
        positions: of the model, as `max_positions` tells.
        places: of the rows, such as "train.jsonl:7", for the findings.
        progress: show a progress bar.
    """
    if not rows:
        raise ConversationError("no conversations to check: give at least one")
    training, found = find_training_template(tokenizer)
    if training is None and any("messages" in row for row in rows):
        return Examined(found, [], [])
    own = ChatTemplate(tokenizer, own_template(tokenizer) or "")
    by_code: dict[str, dict[int, str]] = defaultdict(dict)  # code -> what was observed, by row
    seen: dict[str, int] = {}
    rendered: dict[int, RenderedText] = {}
    prompt_findings: list[Finding] = []
    for k, row in enumerate(tqdm(rows, "check", disable=not progress, delay=1, leave=False)):
        if seen.setdefault(repr(row), k) != k:
            by_code["duplicate-example"][k] = "the same as an example before it"
        if "messages" not in row:
            text = row["text"] + (tokenizer.eos_token or "") * (not row["text"].endswith(tokenizer.eos_token or ""))
            rendered[k] = RenderedText(text, [(0, len(text))], [])
            continue
        given = row.get("tools"), row.get("chat_template_kwargs") or {}
        try:
            rendered[k] = render_with_loss(training, row["messages"], *given)
            for code, observed in check_row(training, row, rendered[k]):
                by_code[code].setdefault(k, observed)
            if k < MAX_PROMPT_CHECKS and not prompt_findings and len(rendered[k].text) < LONG:
                differ = check_generation_prompt(own, training, row["messages"], given[0], **given[1])
                prompt_findings = [finding(f.code, f"{_place(k, places)}, {f.observed}") for f in differ]
        except (TemplateFailed, ConversationError) as error:
            by_code["row-fails"][k] = str(error)
            rendered.pop(k, None)
            continue
        if problems := rendered[k].problems:
            by_code["turns-not-in-loss"][k] = describe_turns(problems)
    encoded = _encode(tokenizer, rendered, by_code)
    lengths = [len(one.input_ids) for one in encoded.values()]
    examples = [make_example(one) for one in encoded.values()]
    for code, by_row in by_code.items():
        observed = next(iter(by_row.values()))
        found.append(finding(code, f"{describe_rows(list(by_row), len(rows), places)}: {observed}"))
    found += prompt_findings
    if examples:
        numbers = list(encoded)
        placed = [_place(k, places) for k in numbers] if places or len(numbers) < len(rows) else None
        found += _check_length(examples, max_length, positions, placed)
        found += check_labels(tokenizer, examples, placed)
    return Examined(sort_findings(found), examples, lengths)


def max_positions(config: PreTrainedConfig) -> int | None:
    """The most tokens that a model of this configuration has positions for; None where it has no such limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or None


def length_quantiles(lengths: Sequence[int]) -> dict[str, int]:
    """Tokens of an example: median, 95th percentile, largest."""
    if not lengths:
        return {}
    ordered = sorted(lengths)
    median, p95 = (ordered[math.ceil(q * (len(ordered) - 1))] for q in (0.5, 0.95))
    return {"median": median, "95 %": p95, "longest": ordered[-1]}


def _place(k: int, places: Sequence[str] | None) -> str:
    return places[k] if places else f"example {k + 1}"


def _encode(
    tokenizer: PreTrainedTokenizerBase, rendered: dict[int, RenderedText], by_code: dict[str, dict[int, str]]
) -> dict[int, EncodedText]:
    """The tokens of each row that the tokenizer takes."""
    encoded: dict[int, EncodedText] = {}
    numbers = list(rendered)
    for start in range(0, len(numbers), CHUNK):
        chunk = numbers[start : start + CHUNK]
        texts = [_clipped(rendered[k]) for k in chunk]
        try:
            encoded |= zip(chunk, encode_rendered(tokenizer, texts), strict=True)
        except TemplateFailed:
            for k, text in zip(chunk, texts, strict=True):
                try:
                    [encoded[k]] = encode_rendered(tokenizer, [text])
                except TemplateFailed as error:
                    by_code["row-fails"][k] = str(error)
    return dict(sorted(encoded.items()))


def _clipped(rendered: RenderedText) -> RenderedText:
    if len(rendered.text) <= LONG:
        return rendered
    spans = [(a, min(b, LONG)) for a, b in rendered.loss_spans if a < LONG]
    return RenderedText(rendered.text[:LONG], spans, rendered.problems)


def _check_length(
    rows: list[dict[str, list[int]]], max_length: int | None, positions: int | None, places: Sequence[str] | None
) -> list[Finding]:
    found = []
    longest = max(len(row["input_ids"]) for row in rows)
    beyond = [k for k, row in enumerate(rows) if positions and len(row["input_ids"][:max_length]) > positions]
    if beyond:
        observed = (
            f"{describe_rows(beyond, len(rows), places)} with more than {positions} tokens; the longest has {longest}"
        )
        found.append(finding("positions-exceeded", observed))
    if max_length is None:
        return found

    def count_in_loss(labels: list[int]) -> int:
        return sum(label != IGNORE_INDEX for label in labels)

    truncated = [k for k, r in enumerate(rows) if count_in_loss(r["labels"][max_length:])]
    emptied = [k for k in truncated if not count_in_loss(rows[k]["labels"][:max_length])]
    if truncated:
        where = describe_rows(truncated, len(rows), places)
        found.append(finding("answer-cut-off", f"{where} at max_length {max_length}; the longest has {longest} tokens"))
    if emptied:
        observed = f"{describe_rows(emptied, len(rows), places)}: max_length {max_length} leaves none of the answer"
        found.append(finding("all-labels-masked", observed))
    return found
