"""What PEFT does without a word is said, and nothing is said where all is well."""

import warnings

import pytest
import torch

from ftkit.adapters import attach, make_optimizer

from .models import batch, model, train


def said(kind="llama", **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tuned = attach(model(kind), "lora", **options)
    return tuned, [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


def test_in_both_lists_the_lora_is_not_made():
    tuned, texts = said(target_modules=["q_proj", "lm_head"], modules_to_save=["lm_head"])
    assert any("lm_head is in target_modules and in modules_to_save" in text for text in texts)
    assert not any("lm_head" in n and "lora" in n for n, _ in tuned.named_parameters())  # what the text claims


def test_tied_matrices_stay_tied_when_trained_and_it_is_said():
    tuned, texts = said("qwen3", modules_to_save=["embed_tokens"])
    assert any("training the one trains the other" in text for text in texts)
    train(tuned, make_optimizer(tuned, "lora", lr=1e-2), steps=2)
    inner = tuned.base_model.model
    assert torch.equal(inner.get_input_embeddings().weight, inner.lm_head.weight)


def test_a_lora_beside_a_tied_matrix_is_said():
    _, texts = said("qwen3", target_modules=["q_proj", "embed_tokens"])
    assert any("changes one of its two uses only" in text for text in texts)


def test_dropout_in_a_model_without_any():
    tuned, texts = said(lora_dropout=0.5)
    assert any("lora_dropout is 0.5" in text for text in texts)
    train(tuned, make_optimizer(tuned, "lora", lr=1e-2))  # B is no longer zero
    rows = batch()
    with torch.no_grad():
        noisy = [tuned.train()(**rows).logits for _ in range(2)]
        quiet = [tuned.eval()(**rows).logits for _ in range(2)]
    assert not torch.equal(*noisy) and torch.equal(*quiet)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
def test_nothing_is_said_where_all_is_well(kind):
    options = {} if kind == "qwen3" else {"modules_to_save": ["embed_tokens", "lm_head", "norm"]}
    assert said(kind, **options)[1] == []


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_over_a_frozen_embedding_needs_no_warning(reentrant):
    """PEFT asks the embedding for gradients itself; this test turns red when it no longer does."""
    tuned = attach(model(), "lora")
    base = tuned.base_model.model  # older transformers call it otherwise
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    tuned.train()(**batch(), labels=batch()["input_ids"]).loss.backward()
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)
