"""The pad token: defined, else unknown, else new; never a token that ends an answer."""

import pytest

from ftkit.chat import check_tokenizer, choose_pad_token
from tests.tiny import foreign_model

from .cases import CHATML, tokenizer


def test_a_defined_pad_token_stays():
    made = tokenizer()
    chosen = choose_pad_token(made)
    assert (chosen.token, chosen.origin, chosen.new_rows) == ("<|endoftext|>", "defined", 0)
    assert made.pad_token_id == chosen.token_id == made.convert_tokens_to_ids("<|endoftext|>")


def test_else_the_unknown_token():
    made = tokenizer(pad_token=None, unk_token="<|endoftext|>")
    assert choose_pad_token(made).origin == "unk"
    assert made.pad_token == "<|endoftext|>"


@pytest.mark.parametrize(
    "tokens",
    [
        {"pad_token": None},
        {"pad_token": "<|im_end|>"},  # EOS by definition
        {"pad_token": "<|im_end|>", "eos_token": "<|endoftext|>"},  # closes a turn
        {"pad_token": None, "unk_token": "<|im_end|>"},  # as in GPT-2, where unk is EOS
    ],
    ids=["none", "eos", "end of turn", "unk is eos"],
)
def test_else_a_new_one_and_never_one_that_ends_an_answer(tokens):
    made = tokenizer(CHATML, **tokens)
    before = len(made)
    chosen = choose_pad_token(made)
    assert (chosen.origin, chosen.token_id, len(made)) == ("new", before, before + 1)
    assert made.pad_token not in (made.eos_token, "<|im_end|>")
    assert check_tokenizer(made) == []
    assert choose_pad_token(made).origin == "defined"  # a second call changes nothing
    assert len(made) == before + 1


def test_what_the_model_stops_at_counts_too():
    made, model = tokenizer(), foreign_model()
    model.generation_config.eos_token_id = [made.eos_token_id, made.pad_token_id]
    assert choose_pad_token(made, model).origin == "new"


def test_the_model_gets_a_row_only_where_it_lacks_one():
    made, model = tokenizer(pad_token=None), foreign_model()
    rows = model.get_input_embeddings().num_embeddings
    assert choose_pad_token(made, model).new_rows == 0  # the foreign model has spare rows
    assert model.get_input_embeddings().num_embeddings == rows
    assert model.config.pad_token_id == model.generation_config.pad_token_id == made.pad_token_id

    made, model = tokenizer(pad_token=None), foreign_model()
    model.resize_token_embeddings(len(made))
    assert choose_pad_token(made, model).new_rows == 1
    assert check_tokenizer(made, model) == []
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # still tied
