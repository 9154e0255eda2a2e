"""`ftkit merge`: an adapter folder becomes an ordinary model folder, or one sentence says why not."""

import json

import pytest
import torch
from peft.tuners.lora import Linear

from ftcourse import cli
from ftkit.adapters import attach, save_adapter
from ftkit.finetune.merge_command import merge_adapter
from ftkit.models import load_base
from tests.tiny import foreign_model, save_foreign


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_foreign(tmp_path_factory.mktemp("base") / "qwen")


@pytest.fixture
def adapter(tmp_path, source):
    tuned = attach(load_base(source)[0], "lora")
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return save_adapter(tuned, tmp_path / "adapter")


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(["merge", *map(str, arguments)])
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    return error


def test_it_writes_model_tokenizer_and_generation_config(adapter, tmp_path, source, capsys):
    assert cli.main(["merge", str(adapter), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("merged: logits differ by")
    model, tokenizer = load_base(tmp_path / "out")
    base = load_base(source)[0]
    assert model.dtype == base.dtype and tokenizer.chat_template
    assert (tmp_path / "out" / "generation_config.json").is_file()
    changed = [name for name, tensor in base.state_dict().items() if not torch.equal(model.state_dict()[name], tensor)]
    assert changed and all("_proj" in name for name in changed)
    assert not list(tmp_path.glob("*.incomplete"))


def test_what_cannot_be_merged_is_said_in_one_sentence_and_nothing_is_written(adapter, tmp_path, capsys):
    assert "exists: give another folder" in error_of(capsys, adapter, adapter)
    out = tmp_path / "out"
    assert "holds no adapter_config.json" in error_of(capsys, tmp_path, out)
    foreign_model(seed=1).save_pretrained(save_foreign(tmp_path / "another"))  # which has seed 0
    said = error_of(capsys, adapter, out, "--base", tmp_path / "another")
    assert "was trained on another base" in said and "choose another with --base" in said
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    assert "names no base model: give its folder or name with --base" in error_of(capsys, adapter, out)
    assert not out.exists()


def test_a_wrong_merge_is_not_written(adapter, tmp_path, source, capsys, monkeypatch):
    right = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: 0.9 * right(self, adapter))
    assert "do not use the merged model" in error_of(capsys, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert "merged" in merge_adapter(adapter, tmp_path / "out", str(source))
