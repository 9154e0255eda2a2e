"""Metrics reach the experiment trackers, and a tracker that is missing is named before anything starts."""

import sys
import types

import pytest

from ftkit.finetune.metrics import Logger, MetricsFile
from ftkit.finetune.trackers import start_trackers, validate_trackers


@pytest.fixture
def tensorboard(monkeypatch):
    """A stand-in for torch.utils.tensorboard, whose package need not be installed; the calls made to it."""
    calls = []

    class SummaryWriter:
        def __init__(self, folder):
            calls.append(("open", folder))

        def __getattr__(self, name):
            return lambda *args, **kwargs: calls.append((name, args, kwargs))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("torch.utils.tensorboard", module, raising=False)
    return calls


def test_tensorboard_gets_the_settings_and_each_metric_at_its_step(tensorboard, tmp_path):
    trackers = start_trackers(["tensorboard"], tmp_path, {"lr": 0.1})
    logger = Logger(MetricsFile(tmp_path / "metrics.jsonl", 0), trackers, 0, 2)
    logger.log({"step": 1, "loss": 2.5})
    logger.close()
    assert tensorboard[0] == ("open", str(tmp_path / "tensorboard"))
    assert ("add_hparams", ({"lr": 0.1},), {"metric_dict": {}}) in tensorboard
    assert ("add_scalar", ("loss", 2.5), {"global_step": 1}) in tensorboard
    assert tensorboard[-1][0] == "close"


def test_no_tracker_is_asked_for_by_default(tmp_path):
    assert validate_trackers("") == [] and start_trackers([], tmp_path, {}) == []


def test_a_tracker_that_is_unknown_or_missing_is_named(monkeypatch):
    with pytest.raises(ValueError, match="--report_to mlflow: give some of tensorboard, wandb, trackio"):
        validate_trackers("mlflow")
    monkeypatch.setattr("ftkit.finetune.trackers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--report_to wandb: wandb is not installed: pip install wandb"):
        validate_trackers("wandb")
    monkeypatch.setattr("ftkit.finetune.trackers.find_spec", lambda name: name)
    assert validate_trackers("wandb, tensorboard") == ["wandb", "tensorboard"]
