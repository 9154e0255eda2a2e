"""What one optimizer step sees: rows of tokens, the same global batch however many ranks share it.

Shapes: B rows of a micro-batch, T tokens (padded on the right).
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ftkit.conversations import IGNORE_INDEX, encode, read_conversations, training_template

Row = dict[str, list[int]]  # input_ids and labels


@dataclass(frozen=True)
class Encoded:
    rows: list[Row]
    truncated: int  # conversations that lost their end


def read_rows(path: str | Path, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    """Read and tokenise a JSON-lines file of conversations.

    Raises ConversationError or ChatTemplateError for what cannot be trained on.
    """
    template = training_template(tokenizer)
    rows, truncated = [], 0
    for conversation in read_conversations(path):
        row = encode(tokenizer, conversation["messages"], template)
        if len(row["input_ids"]) > max_length:
            truncated += 1
            row = encode(tokenizer, conversation["messages"], template, max_length)
        rows.append(row)
    return Encoded(rows, truncated)


def steps_per_epoch(rows: list[Row], batch_size: int) -> int:
    return -(-len(rows) // batch_size)  # the last batch of an epoch may be smaller


def global_batch(rows: list[Row], step: int, batch_size: int, seed: int) -> list[Row]:
    """The rows of one step, the same on every rank: each epoch is a permutation of its own, seeded."""
    epoch, position = divmod(step, steps_per_epoch(rows, batch_size))
    order = _order(len(rows), seed, epoch)[position * batch_size : (position + 1) * batch_size]
    return [rows[i] for i in order.tolist()]


@lru_cache(maxsize=1)  # the epoch at hand: 8 bytes a row
def _order(rows: int, seed: int, epoch: int) -> torch.Tensor:
    """The permutation of an epoch. Read it only: every step of the epoch is given the same tensor."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(rows, generator=generator)


def micro_batches(
    batch: list[Row], micro_batch_size: int, pad_id: int, rank: int, world_size: int
) -> list[dict[str, torch.Tensor]]:
    """One rank's part of a global batch: `input_ids`, `attention_mask`, `labels`, each (B, T).

    Every rank gets equally many micro-batches, because the ranks of a sharded model gather its layers together.
    Where rows do not divide evenly, a rank fills up with a row whose labels are all masked: it adds nothing.
    """
    share = -(-len(batch) // world_size)
    blank = {"input_ids": batch[0]["input_ids"][:1], "labels": [IGNORE_INDEX]}
    mine = batch[rank::world_size]
    mine = mine + [blank] * (share - len(mine))
    return [pad(mine[i : i + micro_batch_size], pad_id) for i in range(0, share, micro_batch_size)]


def pad(rows: list[Row], pad_id: int) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows)

    def fill(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (width - len(values))

    columns = {
        "input_ids": [fill(row["input_ids"], pad_id) for row in rows],
        "attention_mask": [fill([1] * len(row["input_ids"]), 0) for row in rows],
        "labels": [fill(row["labels"], IGNORE_INDEX) for row in rows],
    }
    return {name: torch.tensor(values) for name, values in columns.items()}


def unmasked_tokens(rows: list[Row]) -> int:
    """How many tokens the loss is the mean of."""
    return sum(label != IGNORE_INDEX for row in rows for label in row["labels"])
