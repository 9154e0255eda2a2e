"""An export is whole or absent, and proved by opening it."""

import pytest
import torch

from ftkit.finetune import export
from ftkit.finetune.export import export_weights, verify_round_trip
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
