"""Global batches: the same rows and the same loss however many ranks share them."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ftkit.batching import global_batch, micro_batches, pad, read_rows, steps_per_epoch, unmasked_tokens
from ftkit.conversations import ConversationError
from ftkit.loss import IGNORE_INDEX
from tests.tiny import foreign_model, foreign_tokenizer, ragged_conversations

ROWS = [{"input_ids": [i] * (i + 1), "labels": [IGNORE_INDEX] + [i] * i} for i in range(1, 12)]


def rows_of(batches):
    """The unpadded rows of micro-batches, without the blank ones that only fill up."""
    found = []
    for batch in batches:
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            length = int(mask.sum())
            assert mask[:length].all() and (labels[length:] == IGNORE_INDEX).all()
            if (labels != IGNORE_INDEX).any():
                found.append((ids[:length].tolist(), labels[:length].tolist()))
    return found


@given(st.integers(1, 11), st.integers(1, 5), st.integers(1, 11))
def test_ranks_share_a_batch_without_loss_or_repeat(count, micro_batch_size, world_size):
    world_size = min(world_size, count)
    batch = ROWS[:count]
    shares = [micro_batches(batch, micro_batch_size, 0, rank, world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1  # the ranks gather layers together
    seen = [row for share in shares for row in rows_of(share)]
    assert sorted(seen) == sorted((row["input_ids"], row["labels"]) for row in batch)


def test_an_epoch_sees_every_row_once_in_a_seeded_order():
    steps = steps_per_epoch(ROWS, 4)
    assert steps == 3
    epochs = [[row for step in range(e * 3, e * 3 + 3) for row in global_batch(ROWS, step, 4, seed=0)] for e in (0, 1)]
    for epoch in epochs:
        assert sorted(row["input_ids"][0] for row in epoch) == list(range(1, 12))
    assert epochs[0] != epochs[1]
    assert global_batch(ROWS, 0, 4, seed=0) == epochs[0][:4] != global_batch(ROWS, 0, 4, seed=1)


def order_of(rows: int, epoch: int, seed: int) -> list[int]:
    """The order of an epoch as every run so far had it."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()


@pytest.mark.parametrize("seed", [0, 7])
def test_the_order_is_that_of_every_run_before_wherever_a_run_resumes(seed):
    steps, size = steps_per_epoch(ROWS, 4), 4
    expected = [order_of(len(ROWS), e, seed)[i * size : (i + 1) * size] for e in range(4) for i in range(steps)]
    for first in (0, 5, 2, 11, 6):  # resumed at another step, backwards too
        for step in range(first, 4 * steps):
            assert global_batch(ROWS, step, size, seed) == [ROWS[i] for i in expected[step]], step
    # The mutation: the order of another epoch is another one.
    assert order_of(len(ROWS), 0, seed) != order_of(len(ROWS), 1, seed)


def test_an_epoch_is_permuted_once(monkeypatch):
    """A data set of a million rows takes a tenth of a second, which each step used to spend."""
    calls, true = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *a, **k: calls.append(a) or true(*a, **k))
    steps = steps_per_epoch(ROWS, 2)
    for step in range(2 * steps):
        global_batch(ROWS, step, 2, seed=99)
    assert len(calls) == 2


def test_padding_does_not_change_the_loss_of_real_tokens():
    model = foreign_model(torch.float32)
    short, long = ROWS[2], ROWS[10]

    def loss(rows):
        batch = pad(rows, pad_id=7)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits, batch["labels"][0, 1:], reduction="sum")

    torch.testing.assert_close(loss([short, long]), loss([short]))
    wrong = pad([short, long], pad_id=7)  # the mutation: padding that is learnt from
    wrong["labels"][wrong["attention_mask"] == 0] = 7
    logits = model(input_ids=wrong["input_ids"], attention_mask=wrong["attention_mask"]).logits[0, :-1]
    mutated = torch.nn.functional.cross_entropy(logits, wrong["labels"][0, 1:], reduction="sum")
    assert not torch.isclose(mutated, loss([short]))


def test_plain_text_is_no_conversation(tmp_path):
    (path := tmp_path / "rows.jsonl").write_text('{"text": "the cat"}')
    with pytest.raises(ConversationError, match="holds plain text"):
        read_rows(path, foreign_tokenizer(), 512)


def test_read_rows_counts_what_it_cuts(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ragged_conversations()))
    whole = read_rows(path, foreign_tokenizer(), 512)
    assert len(whole.rows) == 11 and whole.truncated == 0
    longest = max(len(row["input_ids"]) for row in whole.rows)
    cut = read_rows(path, foreign_tokenizer(), longest - 1)
    assert cut.truncated == 1 and max(len(row["input_ids"]) for row in cut.rows) == longest - 1


def test_unmasked_tokens_by_hand():
    assert unmasked_tokens(ROWS) == sum(range(1, 12))
