"""Chat templates: a sound one is left alone, and variants of a failure are told apart."""

import copy

import pytest
from trl.chat_template_utils import is_chat_template_stop_token_trained

from ftkit.chat import check_chat_template, finding_codes
from ftkit.chat.rendering import end_of_turn_id
from ftkit.models import load_base
from tests.tiny import foreign_model

from .cases import CHATML, NEXT_TURN_CLOSES, TURN, adds_bos, template, tokenizer


def test_a_sound_template_has_no_findings():
    assert template(CHATML) == []


def test_pocket_base_has_two_warnings_of_its_own():
    # Its tokenizer begins each text with <s>, as the template does; <|end|> closes a turn and EOS ends a page.
    assert finding_codes(check_chat_template(load_base()[1])) == ["bos-doubled", "turn-end-is-not-eos"]


def test_the_model_may_stop_where_the_tokenizer_does_not():
    made, model = tokenizer(eos_token="<|endoftext|>"), foreign_model()
    assert finding_codes(check_chat_template(made, model)) == []  # its generation config stops at <|im_end|>
    model.generation_config.eos_token_id = [made.eos_token_id]
    assert finding_codes(check_chat_template(made, model)) == ["turn-end-is-not-eos"]


@pytest.mark.parametrize(
    "text",
    [
        CHATML,
        CHATML.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>"),
        NEXT_TURN_CLOSES,  # closed in the last turn alone
    ],
    ids=["learnt", "outside", "by the next turn"],
)
def test_stop_token_agrees_with_trl(text):
    trained = is_chat_template_stop_token_trained(tokenizer(text))
    assert ("stop-not-in-loss" in finding_codes(template(text))) == (not trained)


def test_the_last_turn_is_looked_at_too_where_trl_does_not_look():
    text = CHATML.replace(
        TURN,
        "{% generation %}{{ m.content }}{% if not loop.last %}<|im_end|>{% endif %}{% endgeneration %}"
        "{% if loop.last %}<|im_end|>{% endif %}",
    )
    assert is_chat_template_stop_token_trained(tokenizer(text))
    assert finding_codes(template(text)) == ["stop-not-in-loss"]


def test_an_end_outside_the_loss_is_said_once_for_all_turns():
    outside = CHATML.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    assert [f.code for f in template(outside)] == ["stop-not-in-loss"]


def test_a_second_token_may_be_the_one_that_stops():
    both = CHATML.replace("<|im_end|>{% endgen", "<|im_end|><|endoftext|>{% endgen")
    assert "turn-end-is-not-eos" not in finding_codes(template(both, eos_token="<|endoftext|>"))
    outside = CHATML.replace("<|im_end|>{% endgeneration %}", "<|im_end|>{% endgeneration %}<|endoftext|>")
    assert "turn-end-is-not-eos" in finding_codes(template(outside, eos_token="<|endoftext|>"))


def test_bos_written_twice_by_the_template_itself():
    made = tokenizer("{{ bos_token }}{{ bos_token }}" + CHATML, bos_token="<|endoftext|>")
    (found,) = check_chat_template(made)
    assert found.code == "bos-doubled"
    assert "itself" in found.observed
    (found,) = check_chat_template(adds_bos("{{ bos_token }}" + CHATML))
    assert "tokenizer(" in found.observed


def test_templates_by_name_are_read_by_their_default():
    made = tokenizer(None)
    made.chat_template = {"default": CHATML, "tool_use": "{{ 1 / 0 }}"}
    assert finding_codes(check_chat_template(made)) == []
    made.chat_template = {"tool_use": CHATML}
    assert finding_codes(check_chat_template(made)) == ["no-template"]


@pytest.mark.parametrize("text", ["{{ 1 / 0 }}", "{% for %}", "{{ messages[9].content }}", "{{ nothing() }}"])
def test_whatever_a_template_raises_is_a_finding(text):
    (found,) = template(text)
    assert found.code == "template-fails"


def test_a_template_that_fails_at_the_second_question_only():
    text = "{% if messages | length > 2 %}{{ raise_exception('one question') }}{% endif %}" + CHATML
    (found,) = [f for f in template(text) if f.severity == "error"]
    assert found.code == "template-fails"
    assert "one question" in found.observed


def test_the_end_of_a_turn():
    for made, end in ((load_base()[1], "<|end|>"), (tokenizer(), "<|im_end|>")):
        assert made.convert_ids_to_tokens(end_of_turn_id(made)) == end
    broken = copy.deepcopy(tokenizer("{{ 1 / 0 }}"))
    assert end_of_turn_id(broken) is None
    assert end_of_turn_id(tokenizer(None)) is None
    assert end_of_turn_id(tokenizer("{{ messages[0].content }}")) is None
