"""Read and validate conversations in JSON lines, and encode them as token ids and labels.

A line holds `{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}`, the
format of the OpenAI, TRL and Hugging Face chat data sets. Other keys are kept and ignored.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from .loss import IGNORE_INDEX
from .models import data_dir

if TYPE_CHECKING:
    import datasets


ROLES = ("system", "developer", "user", "assistant", "tool")
EXAMPLE = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}'
SHOWN_PROBLEMS = 5


class ConversationError(ValueError):
    """Invalid data; the message names the file, the line and what to write instead."""


class ChatTemplateError(ValueError):
    """The chat template is missing or has no generation markers."""


def read_conversations(path: str | Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file of conversations; blank lines are skipped.

    Raises FileNotFoundError, and ConversationError that names up to five invalid lines.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no data file at {path}: give the path of a .jsonl file of conversations")
    rows, problems = [], []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{path}:{number}: not JSON ({error.msg} at column {error.colno}). Write {EXAMPLE}")
            continue
        if problem := find_problem(row):
            problems.append(f"{path}:{number}: {problem}")
        rows.append(row)
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        tail = [f"… and {more} more bad lines"] if more > 0 else []
        raise ConversationError("\n".join(problems[:SHOWN_PROBLEMS] + tail))
    if not rows:
        raise ConversationError(f"{path}: no conversations in it. Write one a line, such as {EXAMPLE}")
    return rows


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise ConversationError(f"{path}: not UTF-8 text ({error.reason}). Save the file as UTF-8") from None


def find_problem(row: Any) -> str | None:
    """The first error of a conversation and how to fix it, or None."""
    if not isinstance(row, dict) or "messages" not in row:
        return f'lacks "messages". Write {EXAMPLE}'
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        return f'"messages" is empty or not a list. Write {EXAMPLE}'
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            return f'message {i} is not an object. Write {{"role": "user", "content": "…"}}'
        role = message.get("role")
        if role not in ROLES:
            return f"message {i} has the unknown role {role!r}. Use one of {', '.join(ROLES)}"
        if role in ("system", "developer") and i > 0:
            return f"message {i} has the role {role!r}, which may only come first. Move it to the front"
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            return f'message {i} ({role}) has no text. Give it "content": "…" as a string'
    if not any(message["role"] == "assistant" for message in messages):
        return 'has no assistant turn, so nothing to learn. Add {"role": "assistant", "content": "…"}'
    return None


def training_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's chat template with {% generation %} markers: its own or TRL's training version.

    Raises ChatTemplateError where there is neither.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise ChatTemplateError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template, so conversations cannot be written as "
            "tokens. Set tokenizer.chat_template and save the tokenizer, or start from a folder that has "
            "chat_template.jinja"
        )
    if re.search(r"\{%-?\s*generation\b", template):
        return template
    from trl.chat_template_utils import get_training_chat_template  # seconds to import, so only where needed

    try:
        return get_training_chat_template(tokenizer)
    except ValueError as error:
        raise ChatTemplateError(
            f"{tokenizer.name_or_path}: its chat template has no {{% generation %}} markers and is not one that TRL "
            "knows, so the assistant's tokens cannot be separated from the user's. Put {% generation %} … "
            "{% endgeneration %} around what the assistant writes, its closing token included"
        ) from error


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    template: str,
    max_length: int | None = None,
) -> dict[str, list[int]]:
    """`input_ids` and `labels` of one conversation, with only the assistant's tokens in the loss.

    Args:
        template: from `training_template`.
        max_length: in tokens; longer conversations are truncated at the end.

    Raises ConversationError when no assistant token remains.
    """
    encoded = tokenizer.apply_chat_template(
        messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    input_ids = encoded["input_ids"][:max_length]
    loss_mask = encoded["assistant_masks"][:max_length]
    # The first token is never predicted.
    labels = [i if m and k else IGNORE_INDEX for k, (i, m) in enumerate(zip(input_ids, loss_mask, strict=True))]
    if all(label == IGNORE_INDEX for label in labels):
        full = len(encoded["input_ids"])
        remedy = (
            f"raise max_length (it has {full} tokens)" if max_length and full > max_length else "check the template"
        )
        raise ConversationError(f"no assistant token is left in {str(messages)[:80]!r}…: {remedy}")
    return {"input_ids": input_ids, "labels": labels}


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int | None = None) -> dict[str, list[int]]:
    """`input_ids` and `labels` of plain text, every token after the first unmasked."""
    input_ids = tokenizer.encode(text)[:max_length]
    return {"input_ids": input_ids, "labels": [IGNORE_INDEX, *input_ids[1:]]}


def find_chat(name: str | Path | None = None) -> dict[str, Path]:
    """The JSON-lines files that `load_chat` reads, by split.

    `name` is a .jsonl file (the split "train") or a folder with one per split; by default the environment variable
    FTKIT_DATA, else the almanac's chats. Raises FileNotFoundError where there is none.
    """
    source = Path(name or os.environ.get("FTKIT_DATA") or data_dir() / "chat")
    if not source.is_dir():
        return {"train": source}
    if not (files := {path.stem: path for path in sorted(source.glob("*.jsonl"))}):
        raise FileNotFoundError(f"{source} holds no .jsonl file of conversations")
    return files


def load_chat(name: str | Path | None = None) -> "datasets.DatasetDict":
    """Load conversations (`messages`); `name` as in `find_chat`.

    The almanac's splits are train, test (held-out questions) and heldout_domains. Raises ConversationError
    or FileNotFoundError for what is not chat data.
    """
    from datasets import Dataset, DatasetDict  # takes a second to import

    return DatasetDict({k: Dataset.from_list(read_conversations(path)) for k, path in find_chat(name).items()})
