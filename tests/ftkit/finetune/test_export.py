"""An export is whole or absent, and proved by opening it."""

import json
from pathlib import Path

import pytest
import torch

from ftkit.finetune import export
from ftkit.finetune.export import export_lora, export_weights, verify_round_trip
from ftkit.finetune.lora import attach_lora
from ftkit.models import load_base, load_tokenizer
from tests.tiny import foreign_model, foreign_tokenizer, save_foreign


@pytest.fixture
def source(tmp_path):
    return str(save_foreign(tmp_path / "qwen"))


def state_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def test_weights_come_back_in_the_base_s_dtype_and_tied(source, tmp_path):
    trained = foreign_model(torch.float32, seed=3)
    export_weights(state_of(trained), source, foreign_tokenizer(), tmp_path / "out")
    again = type(trained).from_pretrained(tmp_path / "out")
    assert again.dtype == torch.bfloat16 and again.lm_head.weight is again.model.embed_tokens.weight
    for name, tensor in trained.to(torch.bfloat16).state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert not list(tmp_path.glob("*.incomplete"))


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 1]},
        {"temperature": 0.9, "top_p": 0.6, "eos_token_id": 2},  # transformers refuses to save it: no do_sample
        {"eos_token_id": 1, "top_k": 3},  # does not stop at the end of a turn
    ],
)
def test_generation_settings_and_template_are_those_of_the_base(source, tmp_path, settings, method):
    path, out = Path(source, "generation_config.json"), tmp_path / "out"
    path.write_text(json.dumps(settings))
    tokenizer = load_tokenizer(source)
    if method == "full":
        export_weights(state_of(foreign_model(torch.float32)), source, tokenizer, out)
    else:
        lora = {"r": 2, "lora_alpha": 4.0, "target_modules": "all-linear"}
        state = attach_lora(load_base(source)[0], **lora).state_dict()
        rows = [{"input_ids": [3, 4, 5], "labels": [3, 4, 5]}]
        export_lora(state, lora, source, tokenizer, rows, tmp_path / "adapter", out)
    if tokenizer.eos_token_id in (ends := settings["eos_token_id"], *(ends if isinstance(ends, list) else ())):
        assert (out / path.name).read_bytes() == path.read_bytes()
    else:
        extended = settings | {"eos_token_id": [1, tokenizer.eos_token_id]}
        assert json.loads((out / path.name).read_text()) == extended
    assert (out / "chat_template.jinja").read_bytes() == Path(source, "chat_template.jinja").read_bytes()


def test_a_base_without_generation_settings_stops_at_the_end_of_a_turn(source, tmp_path):
    Path(source, "generation_config.json").unlink()
    export_weights(state_of(foreign_model(torch.float32)), source, foreign_tokenizer(), tmp_path / "out")
    ends = load_base(tmp_path / "out")[0].generation_config.eos_token_id
    assert foreign_tokenizer().eos_token_id in (ends if isinstance(ends, list) else [ends])


def test_a_folder_that_says_something_else_is_refused(source, tmp_path):
    model = foreign_model()
    verify_round_trip(model, tmp_path / "qwen")
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    with pytest.raises(RuntimeError, match=r"model\.norm\.weight does not come back as it was written"):
        verify_round_trip(model, tmp_path / "qwen")


def test_a_crash_while_writing_leaves_the_folder_before_it(source, tmp_path, monkeypatch):
    trained = state_of(foreign_model(torch.float32, seed=3))
    export_weights(trained, source, foreign_tokenizer(), tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(export, "verify_round_trip", full_disk)
    with pytest.raises(OSError, match="no space"):
        export_weights(state_of(foreign_model()), source, foreign_tokenizer(), tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
