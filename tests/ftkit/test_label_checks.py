"""Faults of labels, each planted, and the floor of the loss against a direct minimisation and by hand."""

import math
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ftkit import overfit
from ftkit.overfit import aligned, check_labels, loss_floor, predicts_next_token

PAD, END = 0, 9


def batch(pad: int = PAD) -> dict[str, torch.Tensor]:
    """Two conversations as tokens: the last three of each are the answer, END among them."""
    rows = [[1, 5, 6, 2, 7, 8, END], [1, 5, 2, 3, END]]
    ids = torch.tensor([row + [pad] * (7 - len(row)) for row in rows])
    attended = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    labels = torch.full_like(ids, -100)
    labels[0, 4:], labels[1, 2:5] = ids[0, 4:], ids[1, 2:5]
    return {"input_ids": ids, "attention_mask": attended, "labels": labels}


def with_labels(change, pad: int = PAD) -> dict[str, torch.Tensor]:
    good = batch(pad)
    return {**good, "labels": change(good["labels"].clone(), good["input_ids"], good["attention_mask"])}


def ahead(labels, ids, attended):
    return torch.cat([labels[:, 1:], torch.full((2, 1), -100)], dim=1)


def behind(labels, ids, attended):
    return torch.cat([torch.full((2, 1), -100), labels[:, :-1]], dim=1)


FAULTS = {
    "all": (lambda labels, ids, attended: labels.fill_(-100), PAD, overfit.NO_LABELS),
    "only the first": (
        lambda labels, ids, a: labels.fill_(-100).index_fill_(1, torch.tensor([0]), 1),
        PAD,
        None,
    ),
    "ahead": (ahead, PAD, overfit.LABELS_SHIFTED),
    "behind": (behind, PAD, overfit.LABELS_SHIFTED),
    "pad token": (lambda labels, ids, a: torch.where(a == 0, ids, labels), PAD, overfit.PADDING_IN_LOSS),
    "padded with 0": (lambda labels, ids, a: torch.where(a == 0, 0, labels), 3, overfit.PADDING_IN_LOSS),
    "other rows": (lambda labels, ids, attended: labels.roll(1, 0), PAD, overfit.LABELS_UNRELATED),
    "end": (
        lambda labels, ids, a: torch.where(ids == END, -100, labels),
        END,
        overfit.END_NOT_IN_LOSS,
    ),
}


@pytest.mark.parametrize("pad", [PAD, END], ids=["own pad", "pad is end"])
def test_good_labels_have_no_fault(pad):
    assert check_labels(batch(pad), next_token=True) is None
    whole = with_labels(lambda labels, ids, attended: torch.where(attended == 1, ids, -100), pad)
    assert check_labels(whole, next_token=True) is None
    without = {name: value for name, value in batch(pad).items() if name != "attention_mask"}
    assert check_labels(without, next_token=True) is None


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(fault):
    change, pad, name = FAULTS[fault]
    found = check_labels(with_labels(change, pad), next_token=True)
    assert found.code == (name or overfit.NO_LABELS)
    assert all(asdict(found).values())


def test_other_models_are_only_asked_for_labels():
    labels = torch.tensor([1, 0])
    assert check_labels({"input_ids": torch.ones(2, 3), "labels": labels}, next_token=False) is None
    none = check_labels({"labels": torch.full((2,), -100)}, next_token=False)
    assert none.code == overfit.NO_LABELS


def test_the_floor_is_zero_where_every_beginning_goes_on_in_one_way():
    assert loss_floor(batch(), next_token=True) == (0.0, 1.0)


def test_the_floor_of_one_question_with_two_answers():
    ids = torch.tensor([[1, 5, 2, 7], [1, 5, 2, 8], [1, 5, 2, 8]])
    labels = torch.tensor([[-100, -100, -100, n] for n in (7, 8, 8)])
    floor = loss_floor({"input_ids": ids, "labels": labels}, next_token=True)
    assert floor.loss == pytest.approx(math.log(3) / 3 + math.log(1.5) * 2 / 3)
    assert floor.accuracy == pytest.approx(2 / 3)
    classes = loss_floor({"input_ids": ids[[0, 0, 1]], "labels": torch.tensor([0, 1, 1])}, next_token=False)
    assert classes.loss == pytest.approx(math.log(2) * 2 / 3) and classes.accuracy == pytest.approx(2 / 3)


def test_the_floor_is_what_a_free_table_of_logits_learns():
    """A table with a row of logits for each beginning can learn anything that the beginnings allow."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 2, (6, 5), generator=generator)
    beginnings = sorted({tuple(row[:t]) for row in ids.tolist() for t in range(1, 5)})
    place = torch.tensor([[beginnings.index(tuple(row[:t])) for t in range(1, 5)] for row in ids.tolist()])
    table = torch.zeros(len(beginnings), 2, requires_grad=True)
    optimizer = torch.optim.Adam([table], lr=0.5)
    for _ in range(300):
        loss = nn.functional.cross_entropy(table[place].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    floor = loss_floor({"input_ids": ids, "labels": ids}, next_token=True)
    assert floor.loss > 0
    assert loss.item() == pytest.approx(floor.loss, abs=1e-3)  # certain beginnings need infinite logits


def test_left_padding_does_not_hide_that_rows_begin_alike():
    ids, attended = torch.tensor([[PAD, 1, 5, 7], [1, 5, 8, PAD]]), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]])
    labels = torch.tensor([[-100, -100, -100, 7], [-100, -100, 8, -100]])
    floor = loss_floor({"input_ids": ids, "attention_mask": attended, "labels": labels}, next_token=True)
    assert floor.loss == pytest.approx(math.log(2))


@pytest.mark.parametrize("next_token", [True, False])
def test_the_alignment_is_found_from_the_loss(next_token):
    labels = batch()["labels"].clone()
    labels[:, 0] = 1  # counts in one alignment only
    logits = torch.randn(2, 7, 10, generator=torch.Generator().manual_seed(0))
    loss = nn.functional.cross_entropy(*aligned(logits, labels, next_token))
    assert predicts_next_token(SimpleNamespace(loss=loss, logits=logits), labels) is next_token
    assert not predicts_next_token(SimpleNamespace(loss=loss, logits=logits[:, 0]), labels[:, 0])
