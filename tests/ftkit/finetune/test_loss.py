"""Evaluation in the middle of a run changes nothing of the run; a chunked loss is used where it is the model's own."""

from dataclasses import replace

import pytest
import torch

from ftkit.batching import micro_batches
from ftkit.distributed.device import pick_device
from ftkit.distributed.mesh import DistributedContext
from ftkit.finetune.data import Batches
from ftkit.finetune.loss import Loss, accumulate_gradients, check_chunked, evaluate
from ftkit.loss import IGNORE_INDEX, chunk_loss
from tests import architectures
from tests.tiny import foreign_model

EXAMPLES = [{"input_ids": list(range(3, 3 + n)), "labels": list(range(3, 3 + n))} for n in (5, 9, 4)]
LOSS = Loss(DistributedContext(0, 1, pick_device(), None), torch.float32)
BATCHES = Batches(EXAMPLES, 3, 2, 512, False, seed=0, pad_id=0, dp_rank=0, dp_size=1)


@pytest.fixture
def model():
    """In training, but for one module that its owner wants in evaluation."""
    model = foreign_model(torch.float32).to(pick_device().device).train()
    model.model.layers[1].eval()
    return model


def modes(model) -> list[bool]:
    return [module.training for module in model.modules()]


def test_evaluation_is_without_dropout_and_leaves_every_module_in_its_own_mode(model):
    model.config.attention_dropout = 0.9
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    before = modes(model)
    first = evaluate(model, EXAMPLES, BATCHES, LOSS)
    assert first == evaluate(model, EXAMPLES, BATCHES, LOSS) and modes(model) == before
    with torch.no_grad():  # the negative control: in training, dropout makes another loss
        noisy = sum(LOSS(model, batch).item() for batch in BATCHES.local(EXAMPLES))
    assert abs(noisy / 18 - first) > 1e-3


def test_a_batch_without_labels_adds_nothing(model):
    mute = [{**row, "labels": [IGNORE_INDEX] * len(row["labels"])} for row in EXAMPLES]
    assert accumulate_gradients(model, mute, BATCHES, LOSS) == 0
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)
    assert accumulate_gradients(model, EXAMPLES, BATCHES, LOSS) > 0


def test_an_evaluation_that_fails_leaves_the_modes_too(model, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of memory")

    before = modes(model)
    monkeypatch.setattr(Loss, "__call__", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(model, EXAMPLES, BATCHES, LOSS)
    assert modes(model) == before


CHUNKED = replace(LOSS, chunked=True)


def test_an_evaluation_in_chunks_is_the_whole_one(model):
    whole = evaluate(model, EXAMPLES, BATCHES, LOSS)
    chunk_loss(model, 3)
    check_chunked(model, CHUNKED)
    assert evaluate(model, EXAMPLES, BATCHES, CHUNKED) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("name", ["capped", "scaled", "router", "without a decoder"])
def test_a_model_whose_loss_is_another_is_refused(name):
    if name == "router":
        model = architectures.build("mixtral", output_router_logits=True, router_aux_loss_coef=3.0)
    else:
        model = foreign_model(torch.float32)
        if name == "without a decoder":
            model.base_model_prefix = "decoder"
        else:
            change = {"capped": torch.tanh, "scaled": lambda logits: 2 * logits}[name]
            inside = type(model).forward

            class Changed(type(model)):
                def forward(self, **inputs):
                    outputs = inside(self, **inputs)
                    outputs.logits = change(5 * outputs.logits)
                    return outputs

            model.__class__ = Changed
    model = model.to(pick_device().device)
    chunk_loss(model, 3)
    with pytest.raises(ValueError, match=r"--loss_chunk: \w+ has another loss .*: train without it"):
        check_chunked(model, CHUNKED)


class AsGiven(Batches):
    """The negative control: micro-batches in the order of the data."""

    def local(self, examples):
        return micro_batches(examples, self.micro_batch_size, self.pad_id, self.dp_rank, self.dp_size)


def test_micro_batches_of_like_length_have_the_same_gradient_and_less_padding(model):
    lengths = [3, 40, 4, 38, 5, 39, 2]
    examples = [{"input_ids": list(range(3, 3 + n)), "labels": [-100, *range(4, 3 + n)]} for n in lengths]
    given = {"max_length": 512, "packing": False, "seed": 0, "pad_id": 0, "dp_rank": 0, "dp_size": 1}
    found = {}
    for kind in (Batches, AsGiven):
        batches = kind(examples, 7, 3, **given)
        model.zero_grad()
        mean = accumulate_gradients(model, examples, batches, LOSS)
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found[kind] = mean, gradients, sum(batch["input_ids"].numel() for batch in batches.local(examples))
    (mean, gradients, tokens), (other, others, more) = found.values()
    assert mean == pytest.approx(other, rel=1e-6)
    for one, two in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)
    assert tokens == 3 * 40 + 3 * 5 + 2 and more > 1.5 * tokens


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_sorted_micro_batches_lose_and_repeat_nothing(ranks):
    examples = [{"input_ids": [n] * (1 + n % 5), "labels": [n] * (1 + n % 5)} for n in range(1, 12)]
    shares = [Batches(examples, 11, 2, 512, False, 0, 0, rank, ranks).local(examples) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1  # ranks all-gather layers together
    rows = [row[row != -100].tolist() for share in shares for batch in share for row in batch["labels"]]
    assert sorted(row for row in rows if row) == sorted(example["labels"] for example in examples)
    widths = [[batch["input_ids"].shape[1] for batch in share] for share in shares]
    assert all(width == sorted(width, reverse=True) for width in widths)
