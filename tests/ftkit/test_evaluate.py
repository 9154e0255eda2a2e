"""Answers against transformers' own generate, one prompt at a time; scores against counting by hand."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, Mamba2Config, MambaConfig, RwkvConfig, XLNetConfig

from ftcourse.almanac import faq_prompt
from ftcourse.evaluation import exact_match_by_domain, loss_by_domain
from ftkit.adapters import attach
from ftkit.chat import end_of_turn_id
from ftkit.conversations import encode_text
from ftkit.evaluate import (
    Answer,
    encode_prompt,
    exact_match,
    generate_answers,
    stop_rate,
    stop_token_ids,
    stream_answer,
)
from ftkit.loss import IGNORE_INDEX
from ftkit.models import load_base
from tests.tiny import foreign_model, foreign_tokenizer, ragged_conversations

QUESTIONS = [
    "What is the capital of Norway?",
    "What is 3 plus 4?",
    "What are the planets of our solar system?",
]


@pytest.fixture(scope="module")
def pocket():
    return load_base()


def alone(model, tokenizer, prompt, max_new_tokens):
    ids = torch.tensor([encode_prompt(tokenizer, prompt)])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=stop_token_ids(model, tokenizer),
        pad_token_id=0,
    )
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_a_batch_answers_as_each_prompt_alone(pocket):
    model, tokenizer = pocket
    prompts = [faq_prompt(q) for q in QUESTIONS] + [[{"role": "user", "content": q}] for q in QUESTIONS]
    answers = generate_answers(model, tokenizer, prompts, max_new_tokens=12, batch_size=4)
    assert [a.text for a in answers] == [alone(model, tokenizer, prompt, 12) for prompt in prompts]
    for prompt, answer in zip(prompts[:3], answers, strict=False):
        pieces = list(stream_answer(model, tokenizer, prompt, max_new_tokens=12))
        assert "".join(pieces).strip() == answer.text and len(pieces) > 1


def test_a_foreign_model_in_bfloat16_answers_too_and_keeps_its_mode():
    model, tokenizer = foreign_model().train(), foreign_tokenizer()
    prompts = [row["messages"][:-1] for row in ragged_conversations()]
    answers = generate_answers(model, tokenizer, prompts, max_new_tokens=5, batch_size=3)
    assert model.training and len(answers) == len(prompts)
    assert all(a.tokens <= 5 and a.stopped == (a.tokens < 5) for a in answers)


def test_a_stop_string_ends_an_answer_and_is_not_part_of_it(pocket):
    model, tokenizer = pocket
    prompts = [faq_prompt(question) for question in QUESTIONS]
    plain = generate_answers(model, tokenizer, prompts)
    cut = generate_answers(model, tokenizer, prompts, stop_strings=["\nQ:", "never said"])
    assert not any(a.stopped for a in plain) and all(a.stopped for a in cut)
    assert [a.text for a in cut] == [a.text.partition("\nQ:")[0] for a in plain]
    for prompt, answer in zip(prompts, cut, strict=True):  # the fewest tokens that hold it
        less, enough = (
            generate_answers(model, tokenizer, [prompt], max_new_tokens=answer.tokens - few)[0].text for few in (1, 0)
        )
        assert "\nQ:" in enough and "\nQ:" not in less
    unsaid = generate_answers(model, tokenizer, prompts, stop_strings=["never said"])
    assert unsaid == plain
    assert not generate_answers(model, tokenizer, prompts[:1], max_new_tokens=3, stop_strings=["\nQ:"])[0].stopped
    with pytest.raises(ValueError, match="empty stop string"):
        generate_answers(model, tokenizer, prompts, stop_strings=[""])


IDS = {"vocab_size": 320, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
WITHOUT_PAST = {
    "mamba": (MambaConfig, {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "mamba2": (
        Mamba2Config,
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1},
    ),
    "rwkv": (RwkvConfig, {"hidden_size": 32, "num_hidden_layers": 2}),
    "xlnet": (XLNetConfig, {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 32}),
}


@pytest.mark.parametrize("name", WITHOUT_PAST)
def test_a_stream_of_a_model_without_past_key_values(name):
    config, sizes = WITHOUT_PAST[name]
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config(**sizes, **IDS))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5)  # or it repeats one token
    agrees(model, foreign_tokenizer(), "the cat sat")


def agrees(model, tokenizer, prompt: str) -> None:
    (answer,) = generate_answers(model, tokenizer, [prompt], max_new_tokens=6)
    streamed = "".join(stream_answer(model, tokenizer, prompt, max_new_tokens=6))
    other = "".join(stream_answer(model, tokenizer, prompt + " on a mat", max_new_tokens=6))
    assert streamed.strip() == answer.text != other.strip()


def test_a_stream_follows_the_generation_config_and_adapters(pocket):
    model, tokenizer = load_base()
    plain = "".join(stream_answer(model, tokenizer, "one, two, one, two,", max_new_tokens=6))
    model.generation_config.suppress_tokens = tokenizer.encode(plain, add_special_tokens=False)[:1]
    agrees(model, tokenizer, "one, two, one, two,")
    assert plain != "".join(stream_answer(model, tokenizer, "one, two, one, two,", max_new_tokens=6))
    for method in ("lora", "prefix"):
        adapted = attach(load_base()[0], method)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.3)
        agrees(adapted, tokenizer, "a list of words")


def test_stopping_is_the_models_own_doing(pocket):
    model, tokenizer = pocket
    end = end_of_turn_id(tokenizer)
    assert tokenizer.convert_ids_to_tokens(end) == "<|end|>"
    assert stop_token_ids(model, tokenizer) == sorted({end, tokenizer.eos_token_id})
    assert end_of_turn_id(foreign_tokenizer()) == foreign_tokenizer().eos_token_id

    class AlwaysEnds(torch.nn.Module):  # a head that says the end token after three others
        def forward(self, hidden):
            logits = torch.zeros(*hidden.shape[:2], len(tokenizer))
            self.calls = getattr(self, "calls", 0) + 1
            logits[..., 300 if self.calls <= 3 else end] = 1.0
            return logits

    model, _ = load_base()
    model.lm_head = AlwaysEnds()
    answer = generate_answers(model, tokenizer, ["x"], max_new_tokens=8)[0]
    assert answer.stopped and answer.tokens == 3
    model.lm_head.calls = 0
    assert not generate_answers(model, tokenizer, ["x"], max_new_tokens=3)[0].stopped


def test_scores_by_hand():
    answers = [Answer("a", True, 1), Answer(" b", False, 1), Answer("c", True, 1), Answer("D", True, 1)]
    references = ["a", "b ", "x", "d"]
    assert stop_rate(answers) == 0.75
    assert exact_match([Answer(a.text.strip(), a.stopped, 1) for a in answers], references) == 0.5
    by_domain = exact_match_by_domain(answers, ["a", "b", "c", "d"], ["p", "p", "q", "q"])
    assert by_domain == {"p": 0.5, "q": 0.5}
    with pytest.raises(ValueError, match="zip"):
        exact_match(answers, ["a"])


def test_loss_by_domain_is_the_mean_over_tokens_not_rows(pocket):
    model, tokenizer = pocket
    texts = ["The capital of France is Paris.", "Up", "3 plus 4 is 7. 3 plus 5 is 8."]
    examples = [encode_text(tokenizer, text) for text in texts]
    losses = loss_by_domain(model, examples, ["a", "a", "b"])

    def own(example):  # transformers' own loss is a mean over tokens
        ids = torch.tensor([example["input_ids"]])
        with torch.no_grad():
            return model(input_ids=ids, labels=torch.tensor([example["labels"]])).loss.item()

    tokens = [len(e["input_ids"]) - 1 for e in examples]
    expected = (own(examples[0]) * tokens[0] + own(examples[1]) * tokens[1]) / (tokens[0] + tokens[1])
    assert math.isclose(losses["a"], expected, rel_tol=1e-5) and math.isclose(
        losses["b"], own(examples[2]), rel_tol=1e-5
    )
    assert not math.isclose(losses["a"], (own(examples[0]) + own(examples[1])) / 2, rel_tol=1e-3)
    masked = {"input_ids": [0, 5], "labels": [IGNORE_INDEX] * 2}
    with pytest.raises(ValueError, match="domain 'z'"):
        loss_by_domain(model, [masked], ["z"])
