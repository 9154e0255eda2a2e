"""The best checkpoint is kept and exported, and a run stops early: the same whether it was interrupted or not."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from ftkit.finetune import train
from ftkit.finetune.selection import Selection
from ftkit.models import load_base
from tests.tiny import ragged_conversations, save_foreign

pytestmark = pytest.mark.usefixtures("no_estimates")


def test_the_lowest_loss_is_the_best_and_patience_counts_from_it():
    selection = Selection(keep_best=True, patience=2)
    assert selection.kept_step is None
    for step, loss in ((1, 3.0), (2, 2.0), (3, 2.0)):
        selection.update(step, loss)
    assert (selection.best_step, selection.kept_step, selection.exhausted) == (2, 2, False)
    resumed = Selection(keep_best=True, patience=2)
    resumed.load_state_dict(json.loads(json.dumps(selection.state_dict())))
    assert resumed == selection
    resumed.update(4, math.nan)  # NaN is no improvement
    assert resumed.exhausted and not Selection(False, 0, worse=9).exhausted
    assert Selection(keep_best=False, patience=2, best_step=3).kept_step is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("selection")
    save_foreign(folder / "qwen", layers=2)
    rows = [json.dumps(row) for row in ragged_conversations()]
    (folder / "train.jsonl").write_text("\n".join(rows[:6]))
    (folder / "test.jsonl").write_text("\n".join(rows[6:]))
    return folder


def run(folder, output, *more):
    """A run whose loss on held-out data soon rises: the learning rate is far too high."""
    settings = {"model": folder / "qwen", "data": folder, "output": folder / output, "lr": 0.3, "max_steps": 8}
    settings |= {"batch_size": 3, "eval_every": 1, "lr_scheduler_type": "constant", "warmup_ratio": 0}
    words = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    train.main([*words, *more])
    lines = (folder / output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["eval_loss"] for line in lines]


def exported(folder, output):
    return load_file(folder / output / "model" / "model.safetensors")


def test_the_best_checkpoint_is_exported(folder, capsys):
    best = run(folder, "best", "--load_best_model_at_end", "true")
    last = run(folder, "last")
    assert best == last and min(best) < best[-1]
    step = best.index(min(best)) + 1
    names = {path.name for path in (folder / "best" / "checkpoints").iterdir()}
    assert names == {f"step-{step:06d}", "step-000008"}
    assert f"of step {step}; eval loss {min(best):.4f}. To talk to it: ftkit chat-with" in capsys.readouterr().out
    stopped = run(folder, "stopped", "--stop_after", str(step))  # its last checkpoint is the best one
    run(folder, "stopped", "--resume", "true", "--max_steps", "8")
    assert len(stopped) == step
    mine, other = exported(folder, "best"), exported(folder, "last")
    assert any(not torch.equal(mine[name], other[name]) for name in mine)
    model, tokenizer = load_base(folder / "best" / "model")
    from ftkit.conversations import encode, training_template
    from ftkit.finetune.loss import next_token_loss

    total = tokens = 0
    for row in ragged_conversations()[6:]:
        example = encode(tokenizer, row["messages"], training_template(tokenizer))
        batch = {name: torch.tensor([values]) for name, values in example.items()}
        count = (batch["labels"][:, 1:] != -100).sum().item()
        with torch.no_grad():
            total += next_token_loss(model.float(), batch, torch.float32, False).item()
        tokens += count
    assert total / tokens == pytest.approx(min(best), rel=2e-2)  # the folder is stored in bfloat16


def test_a_run_stops_early_and_a_resumed_one_where_it_would_have(folder, capsys):
    whole = run(folder, "early", "--early_stopping_patience", "2")
    full = run(folder, "all")
    step = whole.index(min(whole)) + 1
    assert len(whole) == step + 2 < len(full) and whole == full[: len(whole)]
    assert (folder / "early" / "model").is_dir()
    run(folder, "cut", "--early_stopping_patience", "2", "--stop_after", str(step + 1))
    assert run(folder, "cut", "--early_stopping_patience", "2", "--resume", "true") == whole
    capsys.readouterr()
    assert run(folder, "cut", "--early_stopping_patience", "2", "--resume", "true") == whole  # it has ended
    assert "the model is in" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--load_best_model_at_end", "--early_stopping_patience"])
def test_without_evaluations_there_is_no_best(folder, capsys, flag):
    for more, said in (("--eval_every 0", "give --eval_every"), (f"--data {folder}/train.jsonl", "give --eval_data")):
        with pytest.raises(SystemExit) as stop:
            run(folder, "none", flag, "1", *more.split())
        assert stop.value.code == 2 and said in capsys.readouterr().err
    assert not (folder / "none").exists()


def test_how_many_checkpoints_stay(folder):
    run(folder, "two", "--save_every", "1", "--save_total_limit", "2", "--max_steps", "4")
    assert sorted(path.name for path in (folder / "two" / "checkpoints").iterdir()) == ["step-000003", "step-000004"]
    run(folder, "every", "--save_every", "1", "--save_total_limit", "0", "--max_steps", "3")
    assert len(list((folder / "every" / "checkpoints").iterdir())) == 3
