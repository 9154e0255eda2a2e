"""Tokenizer against model: untrained rows are told from trained ones, and nothing else is accused."""

import pytest
import torch

from ftkit.chat import check_tokenizer, finding_codes, untrained_rows
from ftkit.chat.tokenizer import template_tokens
from ftkit.models import load_base
from tests.tiny import foreign_model, foreign_tokenizer

from .cases import CHATML, resized, tokenizer


def test_a_sound_pair_has_no_findings():
    assert check_tokenizer(foreign_tokenizer(), foreign_model()) == []
    assert check_tokenizer(foreign_tokenizer()) == []


def test_pocket_bases_untrained_rows_are_those_its_corpus_never_had():
    # The corpus has no chat: the template's tokens were never read, and words of it were.
    model, made = load_base()
    untrained = untrained_rows(model.get_input_embeddings().weight)
    for token, expected in {
        "<|user|>": True,
        "<|end|>": True,
        "<pad>": True,
        "<s>": False,
        "</s>": False,
    }.items():
        assert bool(untrained[made.convert_tokens_to_ids(token)]) is expected
    words = made("The capital of France is Paris.", add_special_tokens=False)["input_ids"]
    assert not untrained[words].any()


def test_rows_that_resizing_drew_are_found_and_no_others():
    torch.manual_seed(0)
    model = foreign_model(torch.float32)
    before = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(before + 3)
    untrained = untrained_rows(model.get_input_embeddings().weight)
    assert untrained.nonzero().flatten().tolist() == [before, before + 1, before + 2]


def test_zero_rows_are_untrained_and_a_fresh_model_is_not_accused():
    rows = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)) * 0.02
    assert not untrained_rows(rows).any()
    rows[7] = 0
    assert untrained_rows(rows).nonzero().flatten().tolist() == [7]


def test_frozen_is_an_error_and_trainable_a_note():
    assert finding_codes(resized(frozen=True)) == ["untrained-frozen-token"]
    assert finding_codes(resized(frozen=False)) == ["untrained-token"]


def test_the_templates_tokens_are_those_it_writes():
    made = tokenizer()
    expected = made.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert template_tokens(made) == expected
    assert template_tokens(tokenizer(None)) == []
    assert template_tokens(tokenizer("{{ 1 / 0 }}")) == []


def test_peft_with_the_embedding_trained_beside_it_is_no_error():
    from peft import LoraConfig, get_peft_model

    model, made = load_base()
    frozen = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    assert "untrained-frozen-token" in finding_codes(check_tokenizer(made, frozen))
    model, made = load_base()
    saved = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]))
    assert "untrained-frozen-token" not in finding_codes(check_tokenizer(made, saved))
    model, made = load_base()
    ids = made.convert_tokens_to_ids(["<|user|>", "<|assistant|>", "<|end|>"])
    some = get_peft_model(model, LoraConfig(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": ids}))
    assert "untrained-frozen-token" not in finding_codes(check_tokenizer(made, some))


@pytest.mark.parametrize("pad", ["<|im_end|>", "<|endoftext|>"])
def test_pad_is_compared_with_eos_and_with_the_end_of_a_turn(pad):
    found = finding_codes(check_tokenizer(tokenizer(CHATML, pad_token=pad, eos_token="<|endoftext|>")))
    assert found == ["pad-is-stop"]  # the one is EOS, the other closes a turn
