"""Read and tokenise conversations, and split each step's global batch into micro-batches, padded or packed.

The global batch is the same however many ranks share it. Every rank gets equally many micro-batches, because the ranks
of a sharded model all-gather its layers together; a rank with too few examples adds some whose labels are masked.

Shapes: B sequences of a micro-batch, T tokens (padded on the right).
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ._modules import eval_mode
from .conversations import ConversationError, encode, read_conversations, training_template
from .loss import IGNORE_INDEX

Example = dict[str, list[int]]  # input_ids and labels


@dataclass(frozen=True)
class EncodedRows:
    """The tokenised conversations of a file."""

    rows: list[Example]
    truncated: int  # conversations cut off at the maximum length


def read_rows(path: str | Path, tokenizer: PreTrainedTokenizerBase, max_length: int) -> EncodedRows:
    """Read and tokenise a file of conversations.

    Raises ConversationError or ChatTemplateError for data or templates that cannot be trained on.
    """
    template = training_template(tokenizer)
    rows, truncated = [], 0
    for conversation in read_conversations(path):
        if "messages" not in conversation:
            raise ConversationError(f"{path} holds plain text: encode_text makes examples of it")
        given = {name: conversation.get(name) for name in ("tools", "chat_template_kwargs")}
        row = encode(tokenizer, conversation["messages"], template, **given)
        if len(row["input_ids"]) > max_length:
            truncated += 1
            row = encode(tokenizer, conversation["messages"], template, max_length, **given)
        rows.append(row)
    return EncodedRows(rows, truncated)


def steps_per_epoch(rows: list[Example], batch_size: int) -> int:
    """Optimizer steps in one epoch."""
    return -(-len(rows) // batch_size)  # the last batch of an epoch may be smaller


def global_batch(rows: list[Example], step: int, batch_size: int, seed: int) -> list[Example]:
    """The examples of one step, the same on every rank; each epoch has its own seeded permutation."""
    epoch, position = divmod(step, steps_per_epoch(rows, batch_size))
    order = _permutation(len(rows), seed, epoch)[position * batch_size : (position + 1) * batch_size]
    return [rows[i] for i in order.tolist()]


def micro_batches(
    batch: list[Example], micro_batch_size: int, pad_id: int, rank: int, world_size: int
) -> list[dict[str, torch.Tensor]]:
    """One rank's part of a global batch: `input_ids`, `attention_mask`, `labels`, each (B, T)."""
    parts = _chunks_of_rank(batch, _masked_example(batch), micro_batch_size, rank, world_size)
    return [pad(part, pad_id) for part in parts]


def pad(rows: list[Example], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad examples to the longest: `input_ids`, `attention_mask`, `labels`, each (B, T)."""
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
    """Number of tokens in the loss."""
    return sum(label != IGNORE_INDEX for row in rows for label in row["labels"])


def packed_micro_batches(
    batch: list[Example], micro_batch_size: int, max_length: int, pad_id: int, rank: int, world_size: int
) -> list[dict[str, torch.Tensor]]:
    """One rank's part of a global batch: `input_ids`, `position_ids`, `labels`, each (B, T), T <= max_length.

    The loss is the mean over the same tokens as without packing.
    """
    parts = _chunks_of_rank(pack(batch, max_length), [_masked_example(batch)], micro_batch_size, rank, world_size)
    return [_concatenate(part, pad_id) for part in parts]


def pack(rows: list[Example], max_length: int) -> list[list[Example]]:
    """Pack examples into bins of at most `max_length` tokens, by first-fit decreasing; deterministic.

    Raises ValueError for an example that is longer.
    """
    bins: list[list[Example]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
        length = len(row["input_ids"])
        if length > max_length:
            raise ValueError(f"an example has {length} tokens and a bin {max_length}: raise --max_length")
        fits = next((i for i, left in enumerate(room) if left >= length), None)
        if fits is None:
            bins.append([row])
            room.append(max_length - length)
        else:
            bins[fits].append(row)
            room[fits] -= length
    return bins


@torch.no_grad()
def check_no_leak(model: nn.Module, device: torch.device) -> None:
    """Raise ValueError if a conversation changes the logits of the next one in the same packed sequence.

    Some models ignore that positions restart. On a sharded model every rank must call this.
    """
    positions = torch.tensor([[*range(4), *range(4)]], device=device)
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [4, 3, 2, 1, 5, 6, 7, 8]], device=device)
    with eval_mode(model):
        logits = model(input_ids=ids, position_ids=positions.expand(2, -1), use_cache=False).logits[:, 4:].float()
    apart = (logits[0] - logits[1]).abs().max().item()
    # With masked attention the logits differ by rounding only.
    if not apart <= 1e-3 * logits.abs().max().item():
        raise ValueError(
            f"{type(model).__name__} lets a conversation attend to the one before it in a packed sequence (logits "
            f"differ by {apart:.2g}): train without --packing"
        )


@lru_cache(maxsize=1)  # the current epoch: 8 bytes per example
def _permutation(rows: int, seed: int, epoch: int) -> torch.Tensor:
    """The permutation of an epoch. Do not change it: every step of the epoch gets the same tensor."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(rows, generator=generator)


def _masked_example(batch: list[Example]) -> Example:
    """An example of one token whose label is masked, so that it adds nothing to the loss."""
    return {"input_ids": batch[0]["input_ids"][:1], "labels": [IGNORE_INDEX]}


def _chunks_of_rank(items: list, filler, size: int, rank: int, world_size: int) -> list[list]:
    """One rank's items in chunks of at most `size`, with `filler` where other ranks have an item more."""
    count = -(-len(items) // world_size)
    mine = items[rank::world_size]
    mine = mine + [filler] * (count - len(mine))
    return [mine[i : i + size] for i in range(0, count, size)]


def _concatenate(bins: list[list[Example]], pad_id: int) -> dict[str, torch.Tensor]:
    width = max(sum(len(row["input_ids"]) for row in rows) for rows in bins)
    columns: dict[str, list] = {"input_ids": [], "position_ids": [], "labels": []}
    for rows in bins:
        padding = width - sum(len(row["input_ids"]) for row in rows)
        ids = [token for row in rows for token in row["input_ids"]]
        positions = [i for row in rows for i in range(len(row["input_ids"]))]
        # The loss shifts labels by one, so the first label of an example would be predicted from the example before.
        labels = [label for row in rows for label in [IGNORE_INDEX, *row["labels"][1:]]]
        columns["input_ids"].append(ids + [pad_id] * padding)
        columns["position_ids"].append(positions + list(range(padding)))  # padding is a separate document
        columns["labels"].append(labels + [IGNORE_INDEX] * padding)
    return {name: torch.tensor(values) for name, values in columns.items()}
