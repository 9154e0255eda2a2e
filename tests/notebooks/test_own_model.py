"""Notebook 08 is a recipe for any model: it runs from end to end on a foreign one, with a learner's own data."""

import json
import os
import re

import nbformat
import pytest
from nbclient import NotebookClient

from ftkit import load_base
from tests import tiny

from .test_notebooks import target

pytestmark = pytest.mark.thorough


@pytest.fixture
def own(tmp_path, monkeypatch):
    """FTKIT_MODEL and FTKIT_DATA as a learner would set them: a model without a chat template, and ragged data."""
    folder = tiny.save_foreign(tmp_path / "qwen")
    (folder / "chat_template.jinja").unlink()
    (tmp_path / "chats").mkdir()
    for split in ("train", "test", "heldout_domains"):
        lines = "".join(json.dumps(row) + "\n" for row in tiny.ragged_conversations())
        (tmp_path / "chats" / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    monkeypatch.setenv("FTKIT_MODEL", str(folder))
    monkeypatch.setenv("FTKIT_DATA", str(tmp_path / "chats"))
    return folder


def test_notebook_08_on_a_model_of_ones_own(own, tmp_path):
    nb = nbformat.read(target("08_full_fine_tune"), as_version=4)
    constants = next(cell for cell in nb.cells if "MAX_STEPS = " in cell.source)
    hurry = "MAX_STEPS, EVALUATIONS, MAX_NEW_TOKENS = 4, 2, 8"  # the learner is in one
    constants.source += f"\n{hurry}\nOUTPUT = {str(tmp_path / 'kept')!r}"
    client = NotebookClient(nb, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute(env=os.environ | {"OMP_NUM_THREADS": "1"})
    printed = "".join(out.get("text", "") for cell in nb.cells if cell.cell_type == "code" for out in cell.outputs)
    assert "ChatML added, 0 new tokens" in printed  # the tokenizer had them, and no format
    assert "2 evaluations" in printed and "stops" in printed and "merged: logits differ" in printed
    # The rows of the embedding that LoRA trains, on another design.
    assert re.search(r"rows that train: \[.*'<\|im_start\|>', '<\|im_end\|>'", printed)
    kept, tokenizer = load_base(tmp_path / "kept")
    assert kept.config.model_type == "qwen3" and "<|im_start|>" in tokenizer.chat_template
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in kept.generation_config.eos_token_id
