"""The finding on one batch: right on healthy runs and on each planted bug, of two models that have little in common."""

import math
from dataclasses import asdict
from functools import cache

import pytest
import torch
from transformers import Qwen3ForSequenceClassification, T5Config, T5ForConditionalGeneration

from ftkit import load_base, overfit
from ftkit.batching import pad, read_rows
from ftkit.conversations import encode, find_chat, training_template
from ftkit.overfit import overfit_one_batch
from tests.tiny import foreign_model, foreign_tokenizer, ragged_conversations


@cache
def pocket_batch():
    tokenizer = load_base()[1]
    rows = [row for row in read_rows(find_chat()["train"], tokenizer, 128).rows if len(row["input_ids"]) < 40]
    return pad(rows[:4], tokenizer.pad_token_id)


@cache
def foreign_batch():
    tokenizer = foreign_tokenizer()
    template = training_template(tokenizer)
    rows = [encode(tokenizer, c["messages"], template) for c in ragged_conversations()[2:5]]
    return pad(rows, tokenizer.pad_token_id)


MODELS = {
    "pocket-base": (lambda: load_base()[0], pocket_batch, 3e-3),
    "foreign": (lambda: foreign_model(torch.float32), foreign_batch, 1e-2),
}


@pytest.fixture(params=MODELS)
def healthy(request):
    """A model, a batch that it can learn, and a rate that does it."""
    model, batch, lr = MODELS[request.param]
    return model(), batch(), lr


def shift(labels, by):
    moved, edge = labels.roll(by, 1), 0 if by > 0 else -1
    moved[:, edge] = -100
    return moved


BUGS = {
    overfit.PADDING_IN_LOSS: lambda b: torch.where(b["attention_mask"] == 0, b["input_ids"], b["labels"]),
    overfit.LABELS_SHIFTED: lambda b: shift(b["labels"], -1),
    f"{overfit.LABELS_SHIFTED}, the other way": lambda b: shift(b["labels"], +1),
    overfit.NO_LABELS: lambda b: torch.full_like(b["labels"], -100),
    overfit.LABELS_UNRELATED: lambda b: b["labels"].roll(1, 0),
}


def test_a_healthy_batch_is_learnt(healthy):
    model, batch, lr = healthy
    result = overfit_one_batch(model, batch, lr)
    assert result.healthy, result
    assert result.run.fitted and result.run.losses[-1] < overfit.TOLERANCE and result.run.accuracies[-1] == 1
    assert result.floor == (0, 1)
    assert result.run.losses[0] == pytest.approx(model.eval()(**batch).loss.item(), rel=1e-5)
    assert result.chance == pytest.approx(math.log(model.config.vocab_size))


@pytest.mark.thorough
def test_a_rate_is_found_in_half_precision():
    result = overfit_one_batch(foreign_model(torch.bfloat16), foreign_batch())
    assert result.healthy and result.run.lr in overfit.DEFAULT_LRS, result


@pytest.mark.parametrize("bug", BUGS)
def test_broken_labels_are_named(healthy, bug):
    model, batch, lr = healthy
    result = overfit_one_batch(model, {**batch, "labels": BUGS[bug](batch)}, lr, steps=3)
    assert result.finding.code == bug.split(",")[0], result
    assert not result.healthy and all(asdict(result.finding).values())


def test_a_batch_with_shifted_labels_is_learnt_and_not_healthy():
    """The curve alone would say that all is well: what gives it away is the start, above the loss of guessing."""
    batch = pocket_batch()
    result = overfit_one_batch(load_base()[0], {**batch, "labels": shift(batch["labels"], -1)}, lr=3e-3)
    assert result.run.fitted and result.finding.code == overfit.LABELS_SHIFTED
    assert result.run.losses[0] > result.chance


def test_nothing_trains(healthy):
    model, batch, lr = healthy
    result = overfit_one_batch(model.requires_grad_(False), batch, lr)
    assert result.finding.code == overfit.NOTHING_TRAINS and "every parameter is frozen" in result.finding.why
    assert len(set(result.run.losses)) == 1 and len(result.run.losses) == overfit.FLAT_PASSES
    model.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    result = overfit_one_batch(model, batch, lr)
    assert result.finding.code == overfit.NOTHING_TRAINS and "takes part" in result.finding.why


@pytest.mark.parametrize(("factor", "finding"), [(1000, overfit.LR_TOO_HIGH), (1 / 1000, overfit.LR_TOO_LOW)])
def test_a_rate_off_by_a_thousand(healthy, factor, finding):
    model, batch, lr = healthy
    result = overfit_one_batch(model, batch, lr * factor, steps=120)
    assert result.finding.code == finding, result
    assert result.run.lr == lr * factor and not result.run.fitted


def test_weights_that_are_not_finite(healthy):
    model, batch, lr = healthy
    with torch.no_grad():
        next(model.parameters())[batch["input_ids"][0, 1]] = torch.nan
    assert overfit_one_batch(model, batch, lr).finding.code == overfit.LOSS_NOT_FINITE


def test_too_little_trains(healthy):
    model, batch, lr = healthy
    model.requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    assert overfit_one_batch(model, batch, lr, steps=5).finding.code == overfit.NOT_FITTED


def test_one_question_with_two_answers_is_not_a_fault():
    batch = {name: value[[0, 0]] for name, value in pocket_batch().items()}
    place = int((batch["labels"][1] != -100).nonzero()[1])
    batch["input_ids"][1, place] = batch["labels"][1, place] = 700
    result = overfit_one_batch(load_base()[0], batch, lr=1e-3)
    labels = int((batch["labels"] != -100).sum())
    assert result.healthy, result
    assert result.floor.loss == pytest.approx(2 * math.log(2) / labels) and "begin alike" in result.finding.observed


def test_the_model_is_left_as_it_was(healthy):
    model, batch, lr = healthy
    model.train().model.norm.eval()
    model.model.norm.weight.grad = grad = torch.ones_like(model.model.norm.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    result = overfit_one_batch(model, batch, lr, steps=3)
    assert result.run.losses[-1] != result.run.losses[0]  # the weights did move
    with pytest.raises(IndexError):  # a token that the model does not have, met on the way
        overfit_one_batch(model, {**batch, "input_ids": batch["input_ids"] + 10_000}, lr)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert model.model.norm.weight.grad is grad and torch.equal(grad, torch.ones_like(grad))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "model.norm.weight")


def test_a_classifier():
    config = foreign_model().config
    config.num_labels, config.pad_token_id = 3, foreign_tokenizer().pad_token_id
    torch.manual_seed(0)
    model = Qwen3ForSequenceClassification(config).float()
    batch = {**foreign_batch(), "labels": torch.tensor([2, 0, 1])}
    result = overfit_one_batch(model, batch, lr=1e-2)
    assert result.healthy and result.chance == pytest.approx(math.log(3)), result


@pytest.mark.thorough
def test_an_encoder_and_decoder():
    torch.manual_seed(0)
    config = T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    batch = {
        "input_ids": torch.tensor([[5, 6, 7], [8, 9, 7]]),
        "labels": torch.tensor([[11, 12, 1], [13, 1, -100]]),
    }
    result = overfit_one_batch(model, batch, lr=1e-2)
    assert result.healthy and result.run.accuracies[-1] == 1, result
    assert overfit_one_batch(model, batch, lr=1e-5, steps=100).finding.code == overfit.LR_TOO_LOW


def test_bad_calls():
    model, batch = foreign_model(), foreign_batch()
    with pytest.raises(ValueError, match="no labels"):
        overfit_one_batch(model, {"input_ids": batch["input_ids"]})
    with pytest.raises(ValueError, match="integers"):
        overfit_one_batch(model, {**batch, "labels": torch.ones(3)})
    with pytest.raises(ValueError, match="positive"):
        overfit_one_batch(model, batch, lr=0.0)
    with pytest.raises(ValueError, match="head"):
        overfit_one_batch(model.model, batch)
