"""Saved and loaded again, an adapter says the same; on another base it is refused."""

import json

import pytest
import torch
from peft import get_peft_model_state_dict

from ftkit.adapters import adapter_size_bytes, attach, load_adapter, make_optimizer, save_adapter
from ftkit.adapters.saving import fingerprint

from .models import CONFIGS, batch, model, train


def trained(method="lora", kind="llama", **options):
    tuned = attach(model(kind), method, **options)
    train(tuned, make_optimizer(tuned, method, lr=1e-2))
    return tuned.eval()


@pytest.mark.parametrize("method", ["lora", "dora", "prefix", "llama-adapter"])
def test_what_is_loaded_says_what_was_saved(method, tmp_path):
    tuned = trained(method)
    again = load_adapter(model(), save_adapter(tuned, tmp_path)).eval()
    with torch.no_grad():
        assert torch.equal(again(**batch()).logits, tuned(**batch()).logits)
    assert not any(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_fingerprint_knows_the_base_whatever_is_on_it(kind):
    plain = fingerprint(model(kind))
    options = {"modules_to_save": ["embed_tokens", "norm"]}
    assert fingerprint(trained("lora", kind, **options)) == plain
    assert fingerprint(trained("lora", kind, trainable_token_indices=[3])) == plain
    assert fingerprint(model(kind).to(torch.bfloat16)) == plain
    assert fingerprint(model(kind, seed=1)) != plain


def test_another_base_is_refused(tmp_path):
    save_adapter(trained(), tmp_path)
    with pytest.raises(ValueError, match="was trained on another base"):
        load_adapter(model(seed=1), tmp_path)
    (tmp_path / "base.json").unlink()  # as PEFT alone saves it: only shapes can tell
    load_adapter(model(seed=1), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "r": 4}))
    with pytest.raises(ValueError, match="does not fit this model"):
        load_adapter(model(), tmp_path)


def test_a_folder_without_an_adapter_and_a_model_without_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no adapter_config\.json"):
        load_adapter(model(), tmp_path)
    with pytest.raises(TypeError, match="has no adapter"):
        save_adapter(model(), tmp_path)


def test_its_size_is_that_of_the_file_but_for_the_header(tmp_path):
    tuned = trained()
    on_disk = (save_adapter(tuned, tmp_path) / "adapter_model.safetensors").stat().st_size
    header = 200 * len(get_peft_model_state_dict(tuned))  # bytes: name, type, shape and place of each tensor
    assert adapter_size_bytes(tuned) < on_disk < adapter_size_bytes(tuned) + header
    assert adapter_size_bytes(attach(model(), "bitfit")) == 4 * sum(
        p.numel() for n, p in model().named_parameters() if n.endswith("bias")
    )
