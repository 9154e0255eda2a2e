"""The loss before training: by place in the answer, and an alarm that does not depend on the vocabulary's size."""

import math

import pytest
import torch
from torch.nn.functional import log_softmax

from ftkit import load_base, overfit
from ftkit.batching import pad, read_rows
from ftkit.conversations import find_chat
from ftkit.overfit import StartLoss, start_loss
from tests.tiny import foreign_model

IGNORE = -100


def batch_of(count=8):
    tokenizer = load_base()[1]
    rows = [row for row in read_rows(find_chat()["train"], tokenizer, 128).rows if len(row["input_ids"]) < 40]
    return pad(rows[:count], tokenizer.pad_token_id)


def by_hand(model, batch):
    """Label by label, each row without its padding, and its answers once more without its questions."""
    places = {"overall": [], "first": [], "inside": [], "last": [], "alone": []}
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"].tolist(), batch["attention_mask"], strict=True):
        scores = log_softmax(model(ids[None, : int(mask.sum())]).logits[0].double(), dim=-1)
        answers = torch.tensor([[label for label in labels if label != IGNORE]])
        alone = log_softmax(model(answers).logits[0].double(), dim=-1)
        number = 0
        for place, label in enumerate(labels):
            if label == IGNORE:
                continue
            begins, ends = labels[place - 1] == IGNORE, place + 1 == len(labels) or labels[place + 1] == IGNORE
            name = "first" if begins else "last" if ends else "inside"
            for kind in ("overall", name):
                places[kind].append(-scores[place - 1, label].item())
            if name == "inside":
                places["alone"].append(-alone[number - 1, label].item())
            number += 1
    return {name: sum(values) / len(values) for name, values in places.items()}


@torch.no_grad()
def test_it_is_what_each_label_costs_by_hand():
    model, batch = load_base()[0], batch_of()
    found, expected = start_loss(model, batch), by_hand(model, batch)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-4), name
    assert found.overall == pytest.approx(model(**batch).loss.item(), rel=1e-5)
    assert not found.too_high


BROKEN = {
    "another row's": lambda labels: labels.roll(1, 0),
    "shifted": lambda labels: labels.roll(-1, 1),
    "shifted the other way": lambda labels: labels.roll(1, 1),
}


@pytest.mark.parametrize("bug", BROKEN)
def test_labels_that_do_not_belong_to_their_inputs_are_too_high(bug):
    batch = batch_of()
    assert start_loss(load_base()[0], {**batch, "labels": BROKEN[bug](batch["labels"])}).too_high


def test_an_untrained_model_costs_the_uniform_baseline_and_the_verdict_says_so():
    torch.manual_seed(0)
    model = type(load_base()[0])(load_base()[0].config)
    found = start_loss(model, batch_of())
    for name in ("overall", "first", "inside", "last", "alone"):
        assert getattr(found, name) == pytest.approx(math.log(model.config.vocab_size), rel=0.05)
    assert not found.too_high
    result = overfit.overfit_one_batch(model, batch_of(), lr=3e-3)
    assert result.healthy and "like an untrained model" in result.finding.observed


def test_modes_are_restored_and_one_label_has_no_inside():
    model = load_base()[0].train()
    batch = batch_of(1)
    place = int((batch["labels"] != IGNORE).nonzero()[0, 1])
    labels = torch.full_like(batch["labels"], IGNORE)
    labels[0, place] = batch["labels"][0, place]
    found = start_loss(model, {**batch, "labels": labels})
    assert found.first == pytest.approx(found.overall) and math.isnan(found.inside) and math.isnan(found.last)
    assert not found.too_high and model.training


def test_nothing_to_measure():
    batch = batch_of(2)
    assert start_loss(load_base()[0], {**batch, "labels": torch.full_like(batch["labels"], IGNORE)}) is None
    assert start_loss(foreign_model(torch.float32), {"labels": torch.tensor([1])}) is None


def test_the_words_name_every_number():
    text = str(StartLoss(1.0, 2.0, 3.0, 4.0, 5.0))
    assert all(f"{number}.00" in text for number in range(1, 6))
