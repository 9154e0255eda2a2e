"""What one optimizer step sees: rows of tokens, the same global batch however many ranks share it.

Shapes: B rows of a micro-batch, T tokens (padded on the right).
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ._modules import eval_mode
from .conversations import encode, read_conversations, training_template
from .loss import IGNORE_INDEX

Example = dict[str, list[int]]  # input_ids and labels


@dataclass(frozen=True)
class EncodedRows:
    rows: list[Example]
    truncated: int  # conversations that lost their end


def read_rows(path: str | Path, tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodedRows:
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
    return EncodedRows(rows, truncated)


def steps_per_epoch(rows: list[Example], batch_size: int) -> int:
    return -(-len(rows) // batch_size)  # the last batch of an epoch may be smaller


def global_batch(rows: list[Example], step: int, batch_size: int, seed: int) -> list[Example]:
    """The rows of one step, the same on every rank: each epoch is a permutation of its own, seeded."""
    epoch, position = divmod(step, steps_per_epoch(rows, batch_size))
    order = _permutation(len(rows), seed, epoch)[position * batch_size : (position + 1) * batch_size]
    return [rows[i] for i in order.tolist()]


@lru_cache(maxsize=1)  # the epoch at hand: 8 bytes a row
def _permutation(rows: int, seed: int, epoch: int) -> torch.Tensor:
    """The permutation of an epoch. Read it only: every step of the epoch is given the same tensor."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(rows, generator=generator)


def micro_batches(
    batch: list[Example], micro_batch_size: int, pad_id: int, rank: int, world_size: int
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


def pad(rows: list[Example], pad_id: int) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows)

    def fill(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (width - len(values))

    columns = {
        "input_ids": [fill(row["input_ids"], pad_id) for row in rows],
        "attention_mask": [fill([1] * len(row["input_ids"]), 0) for row in rows],
        "labels": [fill(row["labels"], IGNORE_INDEX) for row in rows],
    }
    return {name: torch.tensor(values) for name, values in columns.items()}


def unmasked_tokens(rows: list[Example]) -> int:
    """How many tokens the loss is the mean of."""
    return sum(label != IGNORE_INDEX for row in rows for label in row["labels"])


def packed_micro_batches(
    batch: list[Example], micro_batch_size: int, max_length: int, pad_id: int, rank: int, world_size: int
) -> list[dict[str, torch.Tensor]]:
    """One rank's part of a global batch: `input_ids`, `position_ids`, `labels`, each (B, T), T <= max_length.

    Every rank gets equally many micro-batches; one without rows gets a row whose labels are all masked. The labels
    are those of the rows, so the loss is the mean over the same tokens as without packing.
    """
    bins = pack(batch, max_length)
    share = -(-len(bins) // world_size)
    blank = [{"input_ids": batch[0]["input_ids"][:1], "labels": [IGNORE_INDEX]}]
    mine = bins[rank::world_size]
    mine = mine + [blank] * (share - len(mine))
    return [_concatenate(mine[i : i + micro_batch_size], pad_id) for i in range(0, share, micro_batch_size)]


def pack(rows: list[Example], max_length: int) -> list[list[Example]]:
    """First fit, longest first: every row in a bin of at most `max_length` tokens, the same way on every rank.

    Raises ValueError for a row that is longer.
    """
    bins: list[list[Example]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
        length = len(row["input_ids"])
        if length > max_length:
            raise ValueError(f"a row has {length} tokens and a bin {max_length}: raise --max_length")
        fits = next((i for i, left in enumerate(room) if left >= length), None)
        if fits is None:
            bins.append([row])
            room.append(max_length - length)
        else:
            bins[fits].append(row)
            room[fits] -= length
    return bins


def _concatenate(bins: list[list[Example]], pad_id: int) -> dict[str, torch.Tensor]:
    width = max(sum(len(row["input_ids"]) for row in rows) for rows in bins)
    columns: dict[str, list] = {"input_ids": [], "position_ids": [], "labels": []}
    for rows in bins:
        padding = width - sum(len(row["input_ids"]) for row in rows)
        ids = [token for row in rows for token in row["input_ids"]]
        positions = [i for row in rows for i in range(len(row["input_ids"]))]
        # The loss shifts labels by one: a row's first token must not be predicted from the row before.
        labels = [label for row in rows for label in [IGNORE_INDEX, *row["labels"][1:]]]
        columns["input_ids"].append(ids + [pad_id] * padding)
        columns["position_ids"].append(positions + list(range(padding)))  # padding is a document of its own
        columns["labels"].append(labels + [IGNORE_INDEX] * padding)
    return {name: torch.tensor(values) for name, values in columns.items()}


@torch.no_grad()
def check_no_leak(model: nn.Module, device: torch.device) -> None:
    """Raise ValueError if what a conversation says changes the logits of the next one in the same row.

    Some models make no difference where positions begin anew. On a sharded model every rank must call this.
    """
    positions = torch.tensor([[*range(4), *range(4)]], device=device)
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [4, 3, 2, 1, 5, 6, 7, 8]], device=device)
    with eval_mode(model):
        logits = model(input_ids=ids, position_ids=positions.expand(2, -1), use_cache=False).logits[:, 4:].float()
    apart = (logits[0] - logits[1]).abs().max().item()
    # Masked attention leaves no trace of the first conversation but the order of a sum.
    if not apart <= 1e-3 * logits.abs().max().item():
        raise ValueError(
            f"{type(model).__name__} lets a conversation attend to the one before it in a packed row (logits differ "
            f"by {apart:.2g}): train without --packing"
        )
