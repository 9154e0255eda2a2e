"""The record of a published chat model, and that the program measures what it says."""

import json
import math

import pytest
import torch

from experiments import chat_facts
from ftkit.batching import pad, read_rows
from ftkit.conversations import find_chat
from ftkit.loss import IGNORE_INDEX
from ftkit.models import data_dir, load_base
from tests.tiny import CHATML, foreign_model, foreign_tokenizer

RECORD = json.loads((data_dir() / "results" / "chat_facts.json").read_text())


def test_the_record_is_whole():
    assert set(RECORD["batches"]) == {"almanac", "snips"} == set(RECORD["sources"])
    for batch in RECORD["batches"].values():
        assert batch["uniform"] == pytest.approx(math.log(49_152))
        assert list(batch["starts"]) == ["healthy", "shifted", "another row's", "padding in the loss"]
    assert {len(RECORD["questions"]), *map(len, RECORD["answers"].values())} == {chat_facts.QUESTIONS}
    assert RECORD["parameters"] == 134_515_008 and "torch" in RECORD["environment"]["versions"]


def test_measure_agrees_with_the_model_s_own_loss():
    model, tokenizer = load_base()
    found = chat_facts.measure(model, tokenizer, find_chat()["train"])
    batch = pad(read_rows(find_chat()["train"], tokenizer, 256).rows[:8], tokenizer.pad_token_id)
    with torch.no_grad():
        loss = model(**batch).loss.item()
    assert found["starts"]["healthy"]["overall"] == pytest.approx(loss, rel=1e-4)
    assert found["labels"] == int((batch["labels"] != IGNORE_INDEX).sum())
    assert found["starts"]["shifted"]["inside"] > 2 * found["starts"]["healthy"]["inside"]


def test_prompts_end_with_and_without_the_generation_prompt():
    tokenizer, model = foreign_tokenizer(), foreign_model(torch.float32)
    tokenizer.chat_template = CHATML
    seen = []
    generate, model.generate = model.generate, lambda **kw: seen.append(kw["input_ids"]) or generate(**kw)
    for prompted in (True, False):
        chat_facts.ask(model, tokenizer, ["How does a cow sound?"], prompted)
    longer, shorter = (ids[0].tolist() for ids in seen)
    assert longer[: len(shorter)] == shorter and "assistant" in tokenizer.decode(longer[len(shorter) :])
