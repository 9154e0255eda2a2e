"""Models by name: which folder is opened, what is refused, and what a model on meta has."""

import json

import pytest

import ftkit.models
from ftkit.models import CustomCodeError, data_dir, load_base, load_config, load_tokenizer, meta_model, resolve_model
from tests.tiny import save_foreign


@pytest.fixture
def folder(tmp_path):
    return save_foreign(tmp_path / "model")


def test_the_argument_comes_before_the_variable_and_that_before_pocket_base(folder, monkeypatch):
    monkeypatch.setenv("FTKIT_MODEL", str(folder))
    assert resolve_model() == str(folder)
    assert resolve_model("owner/model") == "owner/model"  # a hub name is not looked up here
    monkeypatch.delenv("FTKIT_MODEL")
    assert resolve_model() == str(data_dir() / "pocket-base")


def test_folders_without_a_model_in_safetensors_are_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder at"):
        resolve_model(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        resolve_model(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"has no \*\.safetensors"):
        resolve_model(folder)


@pytest.mark.parametrize(
    ("load", "file", "values"),
    [
        (load_config, "config.json", {"model_type": "mine", "auto_map": {"AutoConfig": "own.C"}}),
        (load_config, "config.json", {"model_type": "t5", "auto_map": {"AutoModelForCausalLM": "own.M"}}),
        (load_tokenizer, "tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "own.T"]}}),
    ],
)
def test_custom_code_is_refused_with_the_file_that_asks_for_it(folder, load, file, values):
    if load is load_tokenizer:  # an architecture for which transformers names no tokenizer
        values["tokenizer_class"] = "Mine"
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(CustomCodeError, match=rf"auto_map in its {file}.*ftkit never runs that"):
        load(folder)


def test_impossible_values_of_a_configuration_are_said_in_a_sentence(folder):
    path = folder / "config.json"
    for values, said in (({"hidden_size": "wide"}, "hidden_size"), ({"rms_norm_eps": [1]}, "rms_norm_eps")):
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        with pytest.raises(ValueError, match=f"its config.json is not valid: .*{said}"):
            load_config(folder)
        save_foreign(folder)


def test_a_meta_model_has_the_names_and_shapes_of_the_loaded_one(folder):
    model, _ = load_base(folder)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    meta = meta_model(str(folder))
    assert {name: p.shape for name, p in meta.named_parameters()} == shapes
    assert all(p.is_meta for p in meta.parameters()) and meta.dtype.itemsize == 4


def test_the_data_of_an_installed_package_come_before_those_of_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(ftkit.models, "__file__", str(tmp_path / "ftkit" / "models.py"))
    assert data_dir() == tmp_path / "data"
    (tmp_path / "ftkit" / "data").mkdir(parents=True)
    assert data_dir() == tmp_path / "ftkit" / "data"
