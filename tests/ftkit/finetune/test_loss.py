"""Evaluation in the middle of a run changes nothing of the run."""

from types import SimpleNamespace

import pytest
import torch

from ftkit.distributed.device import pick_device
from ftkit.distributed.mesh import DistributedContext
from ftkit.finetune import loss
from ftkit.finetune.config import Config
from tests.tiny import foreign_model

ROWS = [{"input_ids": list(range(3, 3 + n)), "labels": list(range(3, 3 + n))} for n in (5, 9, 4)]
INPUTS = SimpleNamespace(evaluation=ROWS, pad_id=0)
CONFIG, ALONE = Config(output="x", micro_batch_size=2), DistributedContext(0, 1, pick_device(), None)


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
    first = loss.evaluate(model, INPUTS, CONFIG, ALONE)
    assert first == loss.evaluate(model, INPUTS, CONFIG, ALONE) and modes(model) == before
    with torch.no_grad():  # the mutation: in training, dropout makes another loss
        noisy = sum(
            loss.summed_loss(model, batch, CONFIG, ALONE).item()
            for batch in loss.local_micro_batches(ROWS, CONFIG, INPUTS, ALONE)
        )
    assert abs(noisy / 18 - first) > 1e-3


def test_an_evaluation_that_fails_leaves_the_modes_too(model, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of memory")

    before = modes(model)
    monkeypatch.setattr(loss, "summed_loss", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        loss.evaluate(model, INPUTS, CONFIG, ALONE)
    assert modes(model) == before
