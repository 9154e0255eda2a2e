"""Loading for training, on pocket-base, on a foreign model, on damaged folders, and on GPUs that are played."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ftkit import loading
from ftkit.chat import check_chat_template, check_tokenizer, end_of_turn_id, finding_codes
from ftkit.chat.tokenizer import CHATML, TURN_END, add_chat_template
from ftkit.distributed.device import DeviceInfo
from ftkit.evaluate import generate_answers
from ftkit.loading import check_loaded, explain_dtype, load_checked, load_for_training, pick_attention
from tests import architectures, tiny

CHAT = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "sat"}]


@pytest.fixture
def foreign(tmp_path):
    return tiny.save_foreign(tmp_path / "qwen")


def test_pocket_base_is_loaded_whole():
    loaded = load_for_training()
    assert str(loaded).splitlines()[0].startswith("device: cpu in float32")
    assert "attention: sdpa" in str(loaded) and "its own chat template" in str(loaded)
    assert loaded.tokenizer.pad_token_id != end_of_turn_id(loaded.tokenizer)


def test_weights_take_the_dtype_that_is_asked_for(foreign):
    assert load_for_training(foreign).model.dtype == torch.float32  # saved in bfloat16
    assert load_for_training(foreign, torch.bfloat16).model.dtype == torch.bfloat16
    assert load_for_training(foreign, None).model.dtype == torch.float32  # as this processor computes


def test_the_template_marks_the_assistant_and_the_pad_ends_nothing(foreign):
    loaded = load_for_training(foreign)
    rendered = loaded.tokenizer.apply_chat_template(CHAT, return_assistant_tokens_mask=True, return_dict=True)
    assert 0 < sum(rendered["assistant_masks"]) < len(rendered["input_ids"])
    assert "pad-is-stop" not in finding_codes(check_tokenizer(loaded.tokenizer, loaded.model))


def test_a_weight_that_is_not_in_the_files_is_named(foreign):
    weights = load_file(foreign / "model.safetensors")
    lost = next(name for name in weights if "mlp" in name)
    del weights[lost]
    save_file(weights, foreign / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"{lost} is not in the model's files"):
        load_for_training(foreign)


def change(folder, **tensors):
    """Write a folder's file anew with other tensors."""
    held = load_file(folder / "model.safetensors") | {name.replace("__", "."): t for name, t in tensors.items()}
    save_file(held, folder / "model.safetensors", {"format": "pt"})


def test_weights_that_nobody_should_train_are_named(foreign):
    embedding = load_file(foreign / "model.safetensors")["model.embed_tokens.weight"]
    change(foreign, lm_head__weight=embedding.clone())
    load_checked(foreign)  # two equal tensors are one
    for tensors, said in (
        ({"lm_head__weight": embedding + 1}, 'ties lm_head.weight to .* write "tie_word_embeddings": false'),
        ({"model__norm__weight": torch.full((32,), float("inf"))}, r"NaN or infinity in model\.norm\.weight"),
        ({"model__norm__weight": torch.ones(31)}, r"model\.norm\.weight has the shape \(31,\) .* and \(32,\)"),
    ):
        tiny.save_foreign(foreign)
        change(foreign, **tensors)
        with pytest.raises(ValueError, match=said):
            load_checked(foreign)
    tiny.save_foreign(foreign)
    change(foreign, model__visual__weight=torch.ones(2))
    with pytest.warns(UserWarning, match=r"also holds model\.visual\.weight, which Qwen3ForCausalLM leaves out"):
        load_checked(foreign)


def test_a_quantised_model_and_a_damaged_file_are_refused(foreign):
    path = foreign / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"is damaged or cut off .*: copy it there again"):
        load_for_training(foreign)
    config = json.loads((foreign / "config.json").read_text())
    for quantised in ({"quant_method": "gptq", "bits": 4}, {"quant_method": "bitsandbytes", "load_in_4bit": True}):
        (foreign / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
        with pytest.raises(ValueError, match=f"quantised with {quantised['quant_method']} .* give the unquantised"):
            load_for_training(foreign)


def test_an_architecture_without_sdpa_is_loaded_with_what_it_has(tmp_path):
    for name in ("bloom", "mamba"):
        loaded = load_for_training(architectures.save(name, tmp_path / name))
        assert f"attention: eager, as {type(loaded.model).__name__} has no sdpa" in str(loaded)


def test_weights_on_meta_are_named():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny.foreign_model().config)
    with pytest.raises(ValueError, match=r"embed_tokens.weight, .* more are on meta"):
        check_loaded(model, {"missing_keys": set()})


def test_a_model_without_a_template_gets_chatml(tmp_path):
    folder = tiny.save_foreign(tmp_path / "base")
    tokenizer = copy.deepcopy(tiny.foreign_tokenizer())
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    loaded = load_for_training(folder)
    assert "ChatML added" in str(loaded)
    assert loaded.tokenizer.chat_template == CHATML and loaded.tokenizer.eos_token == TURN_END
    assert not [f for f in check_chat_template(loaded.tokenizer, loaded.model) if f.severity == "error"]
    assert generate_answers(loaded.model, loaded.tokenizer, [CHAT[:1]], max_new_tokens=3)[0].tokens <= 3


def test_new_tokens_get_rows_and_the_model_stops_at_the_new_end():
    tokenizer, model = copy.deepcopy(tiny.foreign_tokenizer()), tiny.foreign_model()
    tokenizer.chat_template = None
    tokenizer.add_tokens([f"word{i}" for i in range(13)])  # all of the embedding's spare rows
    before = model.get_input_embeddings().weight.shape[0]
    tokenizer.add_tokens(["<|im_start|>x"])
    add_chat_template(tokenizer, model)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) > before
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(TURN_END)


def test_a_template_is_not_replaced():
    with pytest.raises(ValueError, match="has a chat template: use it"):
        add_chat_template(tiny.foreign_tokenizer(), tiny.foreign_model())


GPU = DeviceInfo(torch.device("cuda", 0), torch.bfloat16, "nccl")
T4 = DeviceInfo(torch.device("cuda", 0), torch.float32, "nccl")


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "installed", "attention", "reason"),
    [
        (GPU, torch.bfloat16, (9, 0), True, "flash_attention_2", "allow"),
        (GPU, torch.bfloat16, (9, 0), False, "sdpa", "flash-attn is not installed"),
        (GPU, torch.float32, (9, 0), True, "sdpa", "no weights in float32"),
        (T4, torch.float16, (7, 5), True, "sdpa", "compute capability 8.0"),
        (
            DeviceInfo(torch.device("mps"), torch.float32, "gloo"),
            torch.float32,
            None,
            True,
            "sdpa",
            "needs a CUDA GPU",
        ),
    ],
)
def test_flash_attention_where_the_gpu_and_the_package_allow(
    monkeypatch, device, dtype, capability, installed, attention, reason
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(loading, "is_flash_attn_2_available", lambda: installed)
    assert pick_attention(device, dtype)[0] == attention and reason in pick_attention(device, dtype)[1]


def test_the_precision_is_explained(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert explain_dtype(GPU) == "which the GPU computes natively"
    assert explain_dtype(T4) == "as the Tesla T4 has no native bfloat16"
    assert "newer CUDA GPUs only" in explain_dtype(DeviceInfo(torch.device("cpu"), torch.float32, "gloo"))
