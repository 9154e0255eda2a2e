"""Check conversations as the training template writes them, and tokenise them on the way."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ftkit.conversations.encoding import EncodedText, encode_rendered, make_example
from ftkit.conversations.errors import ConversationError
from ftkit.conversations.rendering import ChatTemplate, TemplateFailed, own_template
from ftkit.conversations.turns import RenderedText, render_with_loss
from ftkit.findings import Finding, sort_findings
from ftkit.loss import IGNORE_INDEX

from .findings import finding
from .labels import label_problems, label_texts
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
    part = observe(tokenizer, training, rows, max_length, positions=positions, places=places, progress=progress)
    findings = sort_findings(found + describe(tokenizer, [part], max_length, positions))
    return Examined(findings, part.examples, part.lengths)


@dataclass(frozen=True)
class Observed:
    """Rows of which the same was observed."""

    count: int
    first: str | int  # its place, or its number counted from 1
    text: str  # what was observed of it


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a data set, tokenised and checked. What the parts show together, `describe` says."""

    digests: np.ndarray  # uint64, of each row: equal for equal rows
    places: Sequence[str] | None
    examples: list[dict[str, list[int]]]  # input_ids and labels, whole; without rows that the template refuses
    lengths: list[int]  # in tokens
    of_rows: dict[str, Observed]  # by the code of a finding
    of_examples: dict[str, Observed]  # by TRUNCATED, EMPTIED, BEYOND or the code of a finding about labels
    prompts: list[Finding]  # what was found about the prompts of the first rows


TRUNCATED, EMPTIED, BEYOND = "truncated", "emptied", "beyond"  # examples that a length cuts off, all or part of them


def observe(
    tokenizer: PreTrainedTokenizerBase,
    training: ChatTemplate | None,
    rows: Sequence[dict[str, Any]],
    max_length: int | None = None,
    *,
    positions: int | None = None,
    places: Sequence[str] | None = None,
    first: int = 0,
    progress: bool = False,
) -> Part:
    """Tokenise and check a part of a data set; arguments as of `examine`.

    Args:
        training: the template to train with, from `find_training_template`.
        first: number of rows in the parts before.
    """
    own = ChatTemplate(tokenizer, own_template(tokenizer) or "")
    by_code: dict[str, dict[int, str]] = defaultdict(dict)  # code -> what was observed, by row
    digests: list[int] = []
    rendered: dict[int, RenderedText] = {}
    prompt_findings: list[Finding] = []
    for k, row in enumerate(tqdm(rows, "check", disable=not progress, delay=1, leave=False)):
        digest = hashlib.blake2b(repr(row).encode(errors="surrogatepass"), digest_size=8).digest()
        digests.append(int.from_bytes(digest, "little"))
        if "messages" not in row:
            text = row["text"] + (tokenizer.eos_token or "") * (not row["text"].endswith(tokenizer.eos_token or ""))
            rendered[k] = RenderedText(text, [(0, len(text))], [])
            continue
        given = row.get("tools"), row.get("chat_template_kwargs") or {}
        try:
            rendered[k] = render_with_loss(training, row["messages"], *given)
            for code, observed in check_row(training, row, rendered[k]):
                by_code[code].setdefault(k, observed)
            if first + k < MAX_PROMPT_CHECKS and not prompt_findings and len(rendered[k].text) < LONG:
                differ = check_generation_prompt(own, training, row["messages"], given[0], **given[1])
                prompt_findings = [finding(f.code, f"{_place(k, places)}, {f.observed}") for f in differ]
        except (TemplateFailed, ConversationError) as error:
            by_code["row-fails"][k] = str(error)
            rendered.pop(k, None)
            continue
        if problems := rendered[k].problems:
            by_code["turns-not-in-loss"][k] = describe_turns(problems)
    encoded = _encode(tokenizer, rendered, by_code)
    examples, numbers = [make_example(one) for one in encoded.values()], list(encoded)

    def noted(ks: list[int], text: str = "") -> Observed:
        return Observed(len(ks), places[ks[0]] if places else first + ks[0] + 1, text)

    of_rows = {code: noted(list(by_row), next(iter(by_row.values()))) for code, by_row in by_code.items()}
    marked = {**_lengths_exceeded(examples, max_length, positions), **label_problems(tokenizer, examples)}
    of_examples = {key: noted([numbers[i] for i in of_key]) for key, of_key in marked.items() if of_key}
    lengths = [len(one.input_ids) for one in encoded.values()]
    codes = np.array(digests, np.uint64)
    return Part(codes, places, examples, lengths, of_rows, of_examples, prompt_findings)


def describe(
    tokenizer: PreTrainedTokenizerBase, parts: Sequence[Part], max_length: int | None, positions: int | None
) -> list[Finding]:
    """The findings about the data set of which these are the parts, in their order."""
    total = sum(len(part.digests) for part in parts)
    kept = sum(len(part.lengths) for part in parts)
    longest = max((max(part.lengths, default=0) for part in parts), default=0)
    of_rows = _joined([part.of_rows for part in parts])
    if repeated := _repeated(parts):
        of_rows = {"duplicate-example": repeated, **of_rows}

    def where(observed: Observed, total: int, dropped: bool = False) -> str:
        first = f"example {observed.first}" if dropped and isinstance(observed.first, int) else observed.first
        return f"{observed.count} of {total} examples (first: {first})"

    found = [finding(code, f"{where(observed, total)}: {observed.text}") for code, observed in of_rows.items()]
    found += next((part.prompts for part in parts if part.prompts), [])
    of_examples = _joined([part.of_examples for part in parts])
    said = {
        BEYOND: ("positions-exceeded", f" with more than {positions} tokens; the longest has {longest}"),
        TRUNCATED: ("answer-cut-off", f" at max_length {max_length}; the longest has {longest} tokens"),
        EMPTIED: ("all-labels-masked", f": max_length {max_length} leaves none of the answer"),
    }
    for key, (code, text) in said.items():
        if key in of_examples:
            found.append(finding(code, where(of_examples[key], kept, kept < total) + text))
    for code, text in label_texts(tokenizer).items():
        if code in of_examples:
            found.append(finding(code, f"{where(of_examples[code], kept, kept < total)}: {text}"))
    return found


def _joined(parts: list[dict[str, Observed]]) -> dict[str, Observed]:
    joined: dict[str, Observed] = {}
    for part in parts:
        for key, observed in part.items():
            before = joined.get(key, replace(observed, count=0))
            joined[key] = replace(before, count=before.count + observed.count)
    return joined


def _repeated(parts: Sequence[Part]) -> Observed | None:
    """The rows that equal one before them."""
    digests = np.concatenate([part.digests for part in parts])
    repeated = np.ones(len(digests), bool)
    repeated[np.unique(digests, return_index=True)[1]] = False
    if not repeated.any():
        return None
    k = int(repeated.argmax())
    before = 0
    for part in parts:
        if k < before + len(part.digests):
            break
        before += len(part.digests)
    first = part.places[k - before] if part.places else k + 1
    return Observed(int(repeated.sum()), first, "the same as an example before it")


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


def _lengths_exceeded(
    examples: list[dict[str, list[int]]], max_length: int | None, positions: int | None
) -> dict[str, list[int]]:
    """The numbers of the examples that are too long, by BEYOND, TRUNCATED and EMPTIED."""

    def count_in_loss(labels: list[int]) -> int:
        return sum(label != IGNORE_INDEX for label in labels)

    beyond = [k for k, row in enumerate(examples) if positions and len(row["input_ids"][:max_length]) > positions]
    if max_length is None:
        return {BEYOND: beyond}
    truncated = [k for k, row in enumerate(examples) if count_in_loss(row["labels"][max_length:])]
    emptied = [k for k in truncated if not count_in_loss(examples[k]["labels"][:max_length])]
    return {BEYOND: beyond, TRUNCATED: truncated, EMPTIED: emptied}
