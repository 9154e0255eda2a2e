"""Packing: every token once, nothing padded but the ends, and the loss and gradients of the rows apart."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from ftkit.batching import check_no_leak, micro_batches, pack, packed_micro_batches, unmasked_tokens
from ftkit.conversations import encode
from ftkit.loss import IGNORE_INDEX
from tests.tiny import CHATML, foreign_model, foreign_tokenizer, ragged_conversations

LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=30)


def row(length: int, first: int = 0) -> dict[str, list[int]]:
    return {"input_ids": list(range(first, first + length)), "labels": list(range(first, first + length))}


@given(LENGTHS)
def test_every_row_lies_in_one_bin_and_no_bin_is_too_long(lengths):
    rows = [row(length, 100 * i) for i, length in enumerate(lengths)]
    bins = pack(rows, 20)
    assert sorted(r["input_ids"][0] for each in bins for r in each) == [100 * i for i in range(len(rows))]
    sizes = [sum(len(r["input_ids"]) for r in each) for each in bins]
    assert max(sizes) <= 20
    # First fit leaves at most one bin half empty.
    assert sum(size <= 10 for size in sizes) <= 1


@given(LENGTHS, st.integers(1, 4), st.integers(1, 3))
def test_ranks_share_the_bins_and_have_equally_many_micro_batches(lengths, world_size, micro_batch_size):
    rows = [row(length, 100 * i) for i, length in enumerate(lengths)]
    shares = [packed_micro_batches(rows, micro_batch_size, 20, 0, r, world_size) for r in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    labels = [b["labels"][b["labels"] != IGNORE_INDEX].tolist() for share in shares for b in share]
    # The first token of a row is no target: what stands before it is another row.
    wanted = sorted(token for r in rows for token in r["labels"][1:])
    assert sorted(token for each in labels for token in each) == wanted


def test_a_row_longer_than_a_bin_is_named():
    with pytest.raises(ValueError, match="an example has 21 tokens and a bin 20"):
        pack([row(21)], 20)


def loss_of(model, batches):
    total = 0.0
    for batch in batches:
        batch = dict(batch)
        labels = batch.pop("labels")[:, 1:].flatten()
        logits = model(**batch, use_cache=False).logits[:, :-1].flatten(0, 1)
        total = total + cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return total


def rows_of_chats():
    tokenizer = foreign_tokenizer()
    return [encode(tokenizer, each["messages"], CHATML) for each in ragged_conversations()]


def test_loss_and_gradients_are_those_of_padded_rows():
    rows, results = rows_of_chats(), []
    for batches in (
        micro_batches(rows, 4, 0, 0, 1),
        packed_micro_batches(rows, 2, 64, 0, 0, 1),
    ):
        model = foreign_model(torch.float64)
        loss = loss_of(model, batches) / unmasked_tokens(rows)
        loss.backward()
        results.append((loss.item(), {n: p.grad for n, p in model.named_parameters()}))
    (padded, gradients), (packed, others) = results
    assert packed == pytest.approx(padded, rel=1e-6)  # the rotary tables are float32
    for name, gradient in gradients.items():
        assert (gradient - others[name]).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_positions_that_run_on_would_show():
    """The mutation: one document for all rows of a bin."""
    model, rows = foreign_model(torch.float64), rows_of_chats()
    (batch,) = packed_micro_batches(rows[:4], 8, 64, 0, 0, 1)
    true = loss_of(model, [batch]).item()
    wrong = loss_of(model, [{**batch, "position_ids": torch.arange(batch["input_ids"].shape[1])[None]}]).item()
    assert abs(true - wrong) > 1e-4 * true  # a hundred times what rows apart and packed differ by


class Leaky(nn.Module):
    """Attends to everything before, as a model does that makes its causal mask by itself."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, position_ids, **inputs):
        return self.model(**inputs)


class Fails(nn.Module):
    def forward(self, **_):
        raise RuntimeError("out of memory")


def test_the_check_leaves_every_module_in_its_own_mode():
    model = foreign_model(torch.float32).train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    check_no_leak(model, torch.device("cpu"))
    assert [module.training for module in model.modules()] == before
    broken = Fails()
    with pytest.raises(RuntimeError, match="out of memory"):
        check_no_leak(broken, torch.device("cpu"))
    assert broken.training


def test_a_model_that_leaks_is_refused():
    check_no_leak(foreign_model(torch.float32), torch.device("cpu"))
    with pytest.raises(ValueError, match="train without --packing"):
        check_no_leak(Leaky(foreign_model(torch.float32)), torch.device("cpu"))
