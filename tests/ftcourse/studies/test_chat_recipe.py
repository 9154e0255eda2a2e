"""What the study calls new or trained is so, and its scores agree with generation."""

import pytest
import torch

from ftcourse.almanac import all_facts, faq_prompt
from ftcourse.datasets import chat_splits
from ftcourse.studies.chat_recipe import (
    NEW_FACTS,
    STARTS,
    chat_token_ids,
    chats_about,
    invented_capitals,
    page_example,
    stored,
    trained_facts,
)
from ftcourse.studies.tasks import exact_and_loss
from ftkit.conversations import encode
from ftkit.evaluate import exact_match, generate_answers
from ftkit.models import data_dir, load_base


@pytest.fixture(scope="module")
def pocket():
    return load_base(data_dir() / "pocket-base")


def test_the_study_has_every_method():
    assert set(stored().methods) == set(STARTS)


def test_new_facts_are_new_and_differ_by_seed(pocket):
    model, tokenizer = pocket
    new, other = invented_capitals(NEW_FACTS), invented_capitals(NEW_FACTS, seed=1)
    known = {text for fact in all_facts() for text in (fact.subject, fact.value)}
    named = [text for fact in new for text in (fact.subject, fact.value)]
    assert len(set(named)) == 2 * NEW_FACTS and not known & set(named)
    assert [f.answer for f in new] != [f.answer for f in other]
    answers = generate_answers(
        model, tokenizer, [faq_prompt(f.questions[0]) for f in new], max_new_tokens=24, stop_strings=["\nQ:"]
    )
    assert exact_match(answers, [fact.answer for fact in new]) == 0


def test_trained_facts_are_those_with_every_wording_in_training():
    train = chat_splits()["train"]
    asked = {m["content"] for row in train for m in row["messages"]}
    found = trained_facts(train)
    assert {f.answer for f in found} <= asked and 200 < len(found) < len(all_facts())
    held_out = {row["messages"][1]["content"] for row in chat_splits()["test"]}
    assert not held_out & {fact.answer for fact in found}
    assert len(chats_about(found[:3])) == sum(len(f.questions) for f in found[:3])


def test_scores_agree_with_generation(pocket):
    model, tokenizer = pocket
    facts = all_facts()[::9]
    torch.manual_seed(0)
    damaged = load_base(data_dir() / "pocket-base")[0]
    torch.nn.init.zeros_(damaged.model.layers[3].mlp.down_proj.weight)  # so that some answers are wrong
    rows = [page_example(tokenizer, fact) for fact in facts]
    answers = generate_answers(damaged, tokenizer, [faq_prompt(f.questions[0]) for f in facts], max_new_tokens=36)
    right = sum(a.text.startswith(f.answer) for a, f in zip(answers, facts, strict=True)) / len(facts)
    exact, loss = exact_and_loss(damaged, rows)
    assert exact == pytest.approx(right) and 0 < exact < 1
    assert exact_and_loss(model, rows)[1] < loss


def test_the_templates_tokens_are_found(pocket):
    tokenizer = pocket[1]
    example = encode(tokenizer, chat_splits()["train"][0]["messages"], tokenizer.chat_template)
    tokens = tokenizer.convert_ids_to_tokens(chat_token_ids(tokenizer, example))
    assert tokens == ["<s>", "<|user|>", "<|assistant|>", "<|end|>"]
