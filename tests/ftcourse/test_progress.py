"""The progress callback in a real Trainer: one bar, kept metrics, and nothing of Trainer's own."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from ftcourse.progress import one_bar
from tests.tiny import foreign_model


def rows(count: int) -> list[dict]:
    return [{"input_ids": torch.arange(8) + i, "labels": torch.arange(8) + i} for i in range(count)]


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_one_bar_one_line_an_evaluation_and_all_metrics(tmp_path, capsys, disable_tqdm):
    arguments = TrainingArguments(
        output_dir=tmp_path,
        max_steps=4,
        per_device_train_batch_size=2,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=disable_tqdm,
    )
    trainer = Trainer(foreign_model(torch.float32), arguments, train_dataset=rows(8), eval_dataset=rows(2))
    bar = one_bar(trainer)
    trainer.train()
    said = capsys.readouterr()
    assert [line.split()[:3] for line in said.out.splitlines() if line.strip()] == [
        ["step", "2", "eval_loss"],
        ["step", "4", "eval_loss"],
    ]
    assert "4/4" in said.err and "{'" not in said.out + said.err
    assert [row["step"] for row in bar.metrics if "loss" in row] == [1, 2, 3, 4]
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert [row["loss"] for row in bar.metrics if "loss" in row] == logged
    assert [row["step"] for row in bar.metrics if "eval_loss" in row] == [2, 4]
