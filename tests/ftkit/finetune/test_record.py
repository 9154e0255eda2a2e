"""`ftkit finetune --record`: the first steps of a run, for `ftkit compare-runs`."""

import json
from pathlib import Path

import pytest

from ftcourse.cli import main
from ftcourse.runs import torchrun
from ftkit.finetune import train
from ftkit.finetune.config import Config, validate
from tests.tiny import ragged_conversations, save_foreign

UNTOLD = str(Path(__file__).with_name("without_estimate.py"))  # what `no_estimates` is to ranks
pytestmark = pytest.mark.usefixtures("no_estimates")


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("record")
    save_foreign(folder / "qwen", layers=2)
    (folder / "chats.jsonl").write_text("\n".join(json.dumps(row) for row in ragged_conversations()))
    fixed = ["--model", folder / "qwen", "--data", folder / "chats.jsonl", "--lr", 1e-3, "--batch_size", 4]
    return lambda name, *more: [str(word) for word in (*fixed, "--record", 2, "--output", folder / name, *more)]


@pytest.fixture(scope="module")
def alone(flags):
    given = flags("alone")
    train.main(given)
    return given[-1]


def test_a_sharded_run_is_that_of_one_process(flags, alone, capfd):
    given = flags("two")
    torchrun(UNTOLD, *given, ranks=2, quiet=True)
    assert main(["compare-runs", alone, given[-1]]) == 0


def test_another_weight_decay_is_another_run(flags, alone, capfd):
    given = flags("decay", "--weight_decay", 0.5)
    train.main(given)
    assert main(["compare-runs", alone, given[given.index("--output") + 1]]) == 1
    assert "weight_decay 0.01 in A and 0.5 in B" in capfd.readouterr().out


@pytest.mark.parametrize("other", [{"compile": True}, {"resume": True}])
def test_recording_is_refused_for_a_compiled_or_resumed_run(tmp_path, monkeypatch, other):
    monkeypatch.setattr("ftkit.finetune.config.check_compiler", lambda device: None)
    with pytest.raises(ValueError, match="--record is for a run from its beginning"):
        validate(Config(output=str(tmp_path / "new"), record=2, **other))
