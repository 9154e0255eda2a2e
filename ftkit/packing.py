"""Packing: several conversations in one row, so that no position is spent on padding.

Shapes: B rows, T tokens of a row. Each conversation's positions begin at 0; transformers sees the jumps and keeps
attention inside each, where no attention mask is given.
"""

import torch
from torch import nn

from ftkit.batches import Row
from ftkit.conversations import IGNORE_INDEX
from ftkit.left_as_it_was import eval_mode


def packed_micro_batches(
    batch: list[Row], micro_batch_size: int, max_length: int, pad_id: int, rank: int, world_size: int
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
    return [_join(mine[i : i + micro_batch_size], pad_id) for i in range(0, share, micro_batch_size)]


def pack(rows: list[Row], max_length: int) -> list[list[Row]]:
    """First fit, longest first: every row in a bin of at most `max_length` tokens, the same way on every rank.

    Raises ValueError for a row that is longer.
    """
    bins: list[list[Row]] = []
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


def _join(bins: list[list[Row]], pad_id: int) -> dict[str, torch.Tensor]:
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
        logits = (
            model(input_ids=ids, position_ids=positions.expand(2, -1), use_cache=False).logits[:, 4:].float()
        )
    apart = (logits[0] - logits[1]).abs().max().item()
    # Masked attention leaves no trace of the first conversation but the order of a sum.
    if not apart <= 1e-3 * logits.abs().max().item():
        raise ValueError(
            f"{type(model).__name__} lets a conversation attend to the one before it in a packed row (logits differ "
            f"by {apart:.2g}): train without --packing"
        )
