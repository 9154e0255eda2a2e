"""The studies' tasks: what a score means, and which row's tokens a loss is about."""

import pytest
import torch

from ftcourse.datasets import low_resource_chat
from ftcourse.studies.tasks import load_task
from ftkit.evaluate import generate_answers
from ftkit.models import load_base


def test_the_score_is_what_greedy_answers_get():
    """Teacher forcing and real generation agree on which answers are exactly right, on half-trained weights."""
    task = load_task("chat-96", 0)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-3)
    for _ in range(6):
        for first in range(0, 96, 16):
            task.loss(task.model, task.train[first : first + 16]).backward()
            optimizer.step()
            optimizer.zero_grad()
    task.model.eval()
    with torch.no_grad():
        score = task.evaluate(task.model)["test_exact"]
    rows = low_resource_chat(96, 0)["test"]
    _, tokenizer = load_base()
    given = generate_answers(task.model, tokenizer, [row["messages"][:1] for row in rows], max_new_tokens=40)
    right = [a.text == row["messages"][1]["content"] and a.stopped for a, row in zip(given, rows, strict=True)]
    assert 0 < sum(right) < len(rows)
    # A near-tie of two tokens may fall otherwise in a padded batch.
    assert sum(right) / len(rows) == pytest.approx(score, abs=1.5 / len(rows))


def test_truth_is_judged_at_the_last_token_of_each_row():
    """The loss of a padded batch is the mean of its rows' own."""
    task = load_task("truth-8", 0)
    rows = task.train[:4]
    assert len({len(row["input_ids"]) for row in rows}) > 1
    with torch.no_grad():
        alone = [task.loss(task.model, [row]).item() for row in rows]
        assert task.loss(task.model, rows).item() == pytest.approx(sum(alone) / 4, rel=1e-4)


@pytest.mark.parametrize("name", ["chat", "chat-x", "songs-10"])
def test_other_tasks_are_refused(name):
    with pytest.raises(ValueError, match="should be chat-N or truth-N"):
        load_task(name, 0)
