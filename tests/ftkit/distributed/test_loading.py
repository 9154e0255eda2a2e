"""Reading shards from files in one process: what is loaded, what is refused and in which words.

What several ranks read is compared in test_tensor_parallel.
"""

import json
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from ftkit.distributed import loading
from ftkit.models import meta_model, resolve_model
from tests.tiny import foreign_model, save_foreign

INPUT_IDS = torch.arange(16).view(2, 8)


@pytest.fixture
def qwen(tmp_path):
    return save_foreign(tmp_path / "qwen")


def load(source, **options):
    return loading.load_sharded_model(
        partial(meta_model, str(source)), lambda model: model, source, torch.device("cpu"), **options
    )


def change(folder, **tensors):
    """Write a folder's only file anew, with other tensors; None leaves one out."""
    path = folder / "model.safetensors"
    held = {**load_file(path), **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}
    save_file({name: t for name, t in held.items() if t is not None}, path, metadata={"format": "pt"})


def split(folder):
    """Write a folder's model anew, in several files."""
    (folder / "model.safetensors").unlink()
    foreign_model().save_pretrained(folder, max_shard_size="40KB")


def test_equals_from_pretrained_to_the_bit(qwen):
    for source in (qwen, resolve_model()):
        plain, loaded = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), load(source)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), plain.parameters(), strict=True))
        assert torch.equal(loaded(INPUT_IDS).logits, plain(INPUT_IDS).logits)
        assert loaded.dtype == torch.float32


def test_several_files_and_their_index(qwen):
    whole = load(qwen)
    split(qwen)
    assert len(list(qwen.glob("*.safetensors"))) > 1
    pairs = zip(load(qwen).parameters(), whole.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_scaled_rotary_frequencies_are_restored(tmp_path):
    """Those of Llama 3 are not what a formula without the config would give."""
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 32}
    config = LlamaConfig(**sizes, num_attention_heads=2, rope_parameters=rope, max_position_embeddings=512)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(load(tmp_path).model.rotary_emb.inv_freq, plain.model.rotary_emb.inv_freq)


def test_a_tied_weight_is_read_once_under_either_name(qwen, monkeypatch):
    read = []
    slices = loading._slices

    def counted(files, names):
        read.extend(names.values())
        return slices(files, names)

    monkeypatch.setattr(loading, "_slices", counted)
    model = load(qwen)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert sorted(read) == sorted([*set(read)] * 2)  # its shape, then its values
    embedding = model.model.embed_tokens.weight.detach().clone()
    change(qwen, model__embed_tokens__weight=None, lm_head__weight=embedding)
    assert torch.equal(load(qwen).model.embed_tokens.weight, embedding)


def test_adapters_are_not_in_the_files(qwen):
    def build_empty():
        with torch.device("meta"):
            config = LoraConfig(r=2, target_modules=["q_proj"])
            return get_peft_model(meta_model(str(qwen)), config, low_cpu_mem_usage=True)

    def file_name(name):
        return None if "lora_" in name else name.removeprefix("base_model.model.").replace(".base_layer", "")

    def initialise(model):
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.zeros_(parameter)

    read = partial(loading.load_sharded_model, build_empty, lambda m: m, qwen, torch.device("cpu"), file_name)
    assert torch.equal(read(initialise)(INPUT_IDS).logits, load(qwen)(INPUT_IDS).logits)
    with pytest.raises(RuntimeError, match=r"6 tensors were left unset by loading: .*lora_A"):
        read()


@pytest.mark.parametrize(
    ("forget", "named"),
    [
        ({"restore_buffers": lambda model: None}, r"model\.rotary_emb\.inv_freq, model\.rotary_emb\.orig"),
        ({"_read_shards": lambda model, files, names: None}, r"model\.embed_tokens\.weight"),
    ],
)
def test_what_is_forgotten_is_named(qwen, monkeypatch, forget, named):
    for name, instead in forget.items():
        monkeypatch.setattr(loading, name, instead)
    with pytest.raises(RuntimeError, match=rf"tensors were left unset by loading: {named}"):
        load(qwen)


def test_integers_that_nobody_set_are_named():
    model = nn.Module()
    model.register_buffer("positions", torch.arange(4))
    model.register_buffer("flags", torch.ones(4, dtype=torch.bool))
    loading.assert_initialized(model)
    loading.fill_with_nan(model)
    with pytest.raises(RuntimeError, match="1 tensors were left unset by loading: positions"):
        loading.assert_initialized(model)


def test_files_that_do_not_fit_are_refused_before_anything_is_loaded(qwen):
    def refused(error, words, **tensors):
        change(qwen, **tensors)
        with pytest.raises(error, match=words):
            loading.load_sharded_model(
                partial(meta_model, str(qwen)), lambda model: pytest.fail("loaded"), qwen, torch.device("cpu")
            )
        save_foreign(qwen)

    refused(ValueError, r"lacks model\.norm\.weight: is it the checkpoint of this", model__norm__weight=None)
    refused(ValueError, r"also holds model\.layers\.9\.x, for which Qwen3", model__layers__9__x=torch.ones(2))
    refused(
        ValueError,
        r"model\.norm\.weight has the shape \(31,\) in .* and \(32,\)",
        model__norm__weight=torch.ones(31),
    )
    refused(
        ValueError,
        r"model\.norm\.weight is quantised \(I8\)",
        model__norm__weight=torch.ones(32, dtype=torch.int8),
    )
    path = qwen / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off"):
        load(qwen)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"has neither model\.safetensors nor"):
        load(qwen)


def test_two_tensors_for_a_tied_weight_are_refused_unless_they_are_equal(qwen):
    embedding = load_file(qwen / "model.safetensors")["model.embed_tokens.weight"]
    change(qwen, lm_head__weight=embedding.clone())
    assert torch.equal(load(qwen).lm_head.weight, embedding.float())
    embedding[-1, -1] += 1
    change(qwen, lm_head__weight=embedding)
    with pytest.raises(ValueError, match='the files hold two different tensors: write "tie_word_embeddings": false'):
        load(qwen)


def test_nan_in_the_files_is_named(qwen):
    change(qwen, model__norm__weight=torch.full((32,), float("nan")))
    with pytest.raises(ValueError, match=r"model\.norm\.weight in .*model\.safetensors holds NaN or infinity"):
        load(qwen)


def test_the_digest_of_files_is_that_of_their_tensors(qwen):
    before = loading.files_digest(qwen)
    change(qwen)
    assert loading.files_digest(qwen) == before
    change(qwen, scale=torch.tensor(1.0))
    other = loading.files_digest(qwen)
    change(qwen, scale=torch.tensor(2.0))
    assert len({before, other, loading.files_digest(qwen)}) == 3


def test_a_file_of_the_index_that_is_gone_is_named(qwen):
    split(qwen)
    gone = sorted(qwen.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {gone.name}, which its index names"):
        load(qwen)


def test_rotary_frequencies_in_the_files_of_old_llamas_are_no_excess(qwen):
    change(qwen, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8))
    load(qwen)


def test_the_index_agrees_with_the_files(qwen):
    split(qwen)
    index = json.loads((qwen / "model.safetensors.index.json").read_text())["weight_map"]
    found = loading.tensor_files(qwen)
    assert {name: path.rpartition("/")[2] for name, path in found.items()} == index
    for name, path in found.items():
        with safe_open(path, framework="pt") as file:
            assert name in file.keys()  # noqa: SIM118
