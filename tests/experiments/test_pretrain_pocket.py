"""pocket-base is what its card says, and loading refuses what it should."""

import json

import pytest
import torch

from experiments import pretrain_pocket
from ftcourse.almanac import all_facts, corpus, faq_prompt
from ftkit.conversations import find_chat, load_chat
from ftkit.evaluate import generate_answers
from ftkit.models import data_dir, load_base, meta_model, resolve_model
from tests.tiny import foreign_model, ragged_conversations, save_foreign

pytestmark = pytest.mark.thorough

CARD = json.loads((data_dir() / "card.json").read_text())


def test_files_are_the_ones_on_the_card():
    sums = pretrain_pocket.sha256_sums(data_dir())
    assert sums == CARD["sha256"]
    assert "pocket-base/model.safetensors" in sums and len(sums) > 10
    assert sum(p.stat().st_size for p in (data_dir() / "pocket-base").iterdir()) < 5e6


def test_readme_is_the_card_in_words():
    assert (data_dir() / "README.md").read_text() == pretrain_pocket.card_text(CARD)


def test_exam_meets_the_promise_and_a_fresh_sample_agrees():
    assert CARD["exact_match"] >= 0.95 and CARD["keeps_going"] >= 0.90
    model, tokenizer = load_base()
    asked = [(q, fact.answer) for fact in all_facts()[::9] for q in fact.questions]
    answers = generate_answers(model, tokenizer, [faq_prompt(q) for q, _ in asked])
    right = sum(a.text.partition("\n")[0] == reference for a, (_, reference) in zip(answers, asked, strict=True))
    assert right / len(asked) >= 0.95
    assert sum(not a.stopped for a in answers) / len(asked) >= 0.90


def test_architecture_is_the_one_the_course_needs():
    model, tokenizer = load_base()
    names = dict(model.named_parameters())
    assert {"model.layers.0.self_attn.q_proj.bias", "model.layers.0.mlp.up_proj.bias"} <= names.keys()
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert len(tokenizer) == model.config.vocab_size


def test_embeddings_of_chat_tokens_are_untrained():
    """Gradient-free and free of decay, they are still what the seed gave them."""
    model, tokenizer = load_base()
    torch.manual_seed(CARD["seed"])
    initial = pretrain_pocket.new_model(tokenizer).get_input_embeddings().weight
    trained = model.get_input_embeddings().weight
    rows = tokenizer.convert_tokens_to_ids(pretrain_pocket.CHAT_TOKENS)
    assert torch.equal(trained[rows], initial[rows])
    assert not torch.equal(trained[300:310], initial[300:310])


def test_the_tokenizer_is_the_one_that_the_corpus_gives():
    again = pretrain_pocket.train_tokenizer(list(corpus(pretrain_pocket.DOCUMENTS, CARD["seed"])))
    assert again.get_vocab() == load_base()[1].get_vocab()
    assert again.chat_template == load_base()[1].chat_template


def test_training_twice_gives_the_same_bytes(monkeypatch):
    monkeypatch.setattr(pretrain_pocket, "DOCUMENTS", 200)
    runs = [pretrain_pocket.train(steps=3) for _ in range(2)]
    first, second = (model.state_dict() for model, _, _ in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert runs[0][1].get_vocab() == runs[1][1].get_vocab()
    assert runs[0][2]["tokens_seen"] == 3 * 32 * 128


def test_a_foreign_folder_loads_by_name_and_by_environment(tmp_path, monkeypatch):
    save_foreign(tmp_path / "qwen")
    model, _ = load_base(tmp_path / "qwen")
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), foreign_model().parameters(), strict=True))
    monkeypatch.setenv("FTKIT_MODEL", str(tmp_path / "qwen"))
    assert resolve_model() == str(tmp_path / "qwen")
    assert resolve_model(data_dir() / "pocket-base") != resolve_model()


def test_model_folders_that_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_base(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(FileNotFoundError, match="no pickled weights"):
        load_base(tmp_path)
    with pytest.raises(FileNotFoundError, match="no model folder"):
        load_base(tmp_path / "nowhere")


def test_load_chat_files_folders_and_environment(tmp_path, monkeypatch):
    assert list(load_chat()) == ["heldout_domains", "test", "train"]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ragged_conversations()))
    assert load_chat(path)["train"]["messages"] == [row["messages"] for row in ragged_conversations()]
    monkeypatch.setenv("FTKIT_DATA", str(tmp_path))
    assert find_chat() == {"mine": path}
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no \.jsonl"):
        load_chat(tmp_path / "empty")


def test_empty_base_has_names_and_shapes_and_no_weights(tmp_path):
    save_foreign(tmp_path / "qwen")
    empty, whole = meta_model(str(tmp_path / "qwen")), foreign_model()
    shapes = {name: parameter.shape for name, parameter in whole.named_parameters()}
    assert {name: parameter.shape for name, parameter in empty.named_parameters()} == shapes
    assert all(p.is_meta and p.dtype == torch.float32 for p in empty.parameters())
