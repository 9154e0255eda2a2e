"""Encoding conversations: the loss mask is exact."""

import pytest

from ftkit.conversations import (
    ChatTemplateError,
    ConversationError,
    encode,
    encode_text,
    training_template,
)
from ftkit.loss import IGNORE_INDEX
from ftkit.models import load_base
from tests.tiny import CHATML, foreign_tokenizer, ragged_conversations


@pytest.mark.parametrize("load", [lambda: load_base()[1], foreign_tokenizer], ids=["pocket", "foreign"])
def test_unmasked_tokens_are_the_answers_and_their_ends(load):
    tokenizer = load()
    template = training_template(tokenizer)
    for row in ragged_conversations():
        example = encode(tokenizer, row["messages"], template)
        rendered = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        assert tokenizer.decode(example["input_ids"]) == rendered
        learnt = tokenizer.decode([label for label in example["labels"] if label != IGNORE_INDEX])
        end = "<|end|>" if "<|end|>" in tokenizer.get_vocab() else "<|im_end|>"
        answers = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
        assert learnt == "".join(answer + end for answer in answers)


def test_truncation_that_leaves_nothing_to_learn_is_refused():
    tokenizer = foreign_tokenizer()
    messages = ragged_conversations()[8]["messages"]
    whole = encode(tokenizer, messages, CHATML)
    cut = encode(tokenizer, messages, CHATML, max_length=len(whole["input_ids"]) - 2)
    assert cut["input_ids"] == whole["input_ids"][:-2]
    with pytest.raises(ConversationError, match="raise max_length"):
        encode(tokenizer, messages, CHATML, max_length=3)


def test_templates_missing_unmarked_and_known_to_trl():
    import trl.chat_template_utils as known

    tokenizer = load_base()[1]
    tokenizer.chat_template = None
    with pytest.raises(ChatTemplateError, match="has no chat template"):
        training_template(tokenizer)
    tokenizer.chat_template = {"rag": "{{ messages }}", "tool_use": "{{ messages }}"}
    with pytest.raises(ChatTemplateError, match="rag, tool_use, and none is named default"):
        training_template(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert training_template(tokenizer) == tokenizer.chat_template
    tokenizer.chat_template = known.qwen3_chat_template
    assert training_template(tokenizer) == known.qwen3_training_chat_template


def test_plain_text_learns_all_but_its_first_token():
    tokenizer = load_base()[1]
    example = encode_text(tokenizer, "The capital of France is Paris.")
    assert example["labels"] == [IGNORE_INDEX, *example["input_ids"][1:]]
    assert tokenizer.decode(example["input_ids"][1:]) == "The capital of France is Paris."
