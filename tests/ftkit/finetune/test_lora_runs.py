"""Runs of the program with every LoRA flag: one process and two ranks compute the same, resume, and export it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ftkit.adapters import load_adapter, merge_and_verify
from ftkit.finetune import train
from ftkit.models import load_base
from tests import architectures
from tests.programs import run_program
from tests.tiny import foreign_tokenizer, ragged_conversations, save_foreign

from .test_lora import untied_model

STEPS = 2
CASES = {
    "wide": {
        "target_modules": "q_proj,embed_tokens,lm_head",
        "use_dora": True,
        "use_rslora": True,
        "loraplus_lr_ratio": 4.0,
    },
    "rows": {"modules_to_save": "lm_head,norm", "trainable_token_indices": "<|im_end|>,7"},
    "experts": {"model": "mixtral", "target_modules": "q_proj,embed_tokens", "use_dora": True},
}
pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("no_estimates")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    untied_model().save_pretrained(folder / "llama")
    foreign_tokenizer().save_pretrained(folder / "llama")
    architectures.save("mixtral", folder / "mixtral")
    save_foreign(folder / "qwen", layers=2)
    (folder / "chats.jsonl").write_text("\n".join(json.dumps(row) for row in ragged_conversations()))
    return folder


def settings(folder, output, **more):
    base = {"model": "llama", "method": "lora", "lora_r": 4, "lr": 1e-2, "max_steps": STEPS}
    base |= {"batch_size": 5, "micro_batch_size": 2, "output": str(folder / output)} | more
    return base | {"model": str(folder / base["model"]), "data": str(folder / "chats.jsonl")}


def run(folder, output, **more):
    words = [(f"--{name}", str(value)) for name, value in settings(folder, output, **more).items()]
    train.main([word for pair in words for word in pair])
    return metrics(folder, output)


def metrics(folder, output):
    return [json.loads(line) for line in (folder / output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(folder):
    return {name: run(folder, name, **more) for name, more in CASES.items()}


def test_two_ranks_train_and_export_what_one_process_does(folder, alone):
    cases = [settings(folder, f"{name}2", **more) for name, more in CASES.items()]
    (folder / "cases.json").write_text(json.dumps(cases))
    run_program(Path(__file__).with_name("mesh_ranks.py"), folder / "cases.json", 2)
    for name, one in alone.items():
        for row, other in zip(one, metrics(folder, f"{name}2"), strict=True):
            assert row["loss"] == pytest.approx(other["loss"], abs=2e-5), name
        adapters = [load_file(folder / run / "adapter" / "adapter_model.safetensors") for run in (name, f"{name}2")]
        assert adapters[0].keys() == adapters[1].keys()
        for tensor in adapters[0]:
            torch.testing.assert_close(adapters[0][tensor], adapters[1][tensor], rtol=0, atol=2e-3)


def test_the_adapter_folder_holds_what_trained(folder, alone):
    parts = {
        "wide": ("lora_embedding_A", "lora_embedding_B", "lm_head.lora_B", "lora_magnitude_vector"),
        "rows": ("lm_head.weight", "norm.weight", "trainable_tokens_delta"),
    }
    for name, wanted in parts.items():
        saved = load_file(folder / name / "adapter" / "adapter_model.safetensors")
        for part in wanted:
            found = [key for key in saved if part in key]
            assert found and all(saved[key].abs().max() > 0 for key in found), part


def test_the_exported_model_is_the_adapter_on_its_base(folder, alone):
    ids = torch.tensor([[foreign_tokenizer().eos_token_id, 7, 30, 40, 50, 60]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name, more in CASES.items():
        base = load_base(folder / more.get("model", "llama"))[0]
        with torch.no_grad():
            untrained = base.eval()(**batch).logits
        merged, report = merge_and_verify(load_adapter(base, folder / name / "adapter"), batch)
        exported = load_base(folder / name / "model")[0]
        for key, tensor in merged.state_dict().items():
            assert torch.equal(exported.state_dict()[key], tensor), (name, key)
        with torch.no_grad():
            assert (exported(**batch).logits - untrained).abs().max() > 10 * report.logit_error


def test_a_stopped_run_resumes_to_the_same_end(folder, alone):
    run(folder, "stopped", **CASES["rows"], stop_after=1)
    again = run(folder, "stopped", **CASES["rows"], resume=True)
    assert [row["loss"] for row in again] == [row["loss"] for row in alone["rows"]]


def test_a_tied_embedding_trains_with_its_head(folder):
    run(folder, "tied", model="qwen", modules_to_save="lm_head")
    model, base = (load_base(folder / name)[0] for name in ("tied/model", "qwen"))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not torch.equal(model.lm_head.weight, base.lm_head.weight)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_noise_on_the_embeddings_trains_with_every_method_and_is_not_exported(folder, method):
    clean, noisy = (
        run(folder, f"noise{method}{alpha}", method=method, neftune_noise_alpha=alpha, max_steps=1) for alpha in (0, 5)
    )
    assert clean[0]["loss"] != pytest.approx(noisy[0]["loss"], abs=1e-5)
    model = load_base(folder / f"noise{method}5" / "model")[0].train()
    ids = torch.arange(3, 11).view(1, 8)
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
