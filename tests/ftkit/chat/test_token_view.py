"""The token view: what it shows is what is trained on, readable without colour, and safe as HTML."""

import html
import re

import pytest

from ftkit.chat import token_view
from ftkit.conversations import encode
from ftkit.loss import IGNORE_INDEX
from ftkit.models import load_base
from tests.tiny import foreign_tokenizer, ragged_conversations

from .cases import CHATML, UNMARKED, tokenizer

MESSAGES = ragged_conversations()[0]["messages"]  # system, user, assistant


def visible_text(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", page))


@pytest.mark.parametrize("load", [lambda: load_base()[1], foreign_tokenizer], ids=["pocket", "foreign"])
def test_every_token_has_the_role_of_its_message(load):
    made = load()
    view = token_view(made, MESSAGES)
    rendered = made.apply_chat_template(MESSAGES, tokenize=False)
    assert "".join(token.text for token in view.tokens) == rendered
    for message in MESSAGES:
        said = "".join(token.text for token in view.tokens if token.role == message["role"])
        assert said == message["content"]
    rest = [token for token in view.tokens if token.role == "template"]
    assert {token.text for token in rest if token.special} == {
        token for token in made.get_added_vocab() if token in rendered
    }


def test_what_is_learnt_is_what_encode_trains_on():
    made = foreign_tokenizer()
    for row in ragged_conversations():
        labels = encode(made, row["messages"], CHATML)["labels"]
        tokens = token_view(made, row["messages"]).tokens
        assert [token.in_loss for token in tokens] == [label != IGNORE_INDEX for label in labels]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_keeps_its_roles_and_shows_what_is_not_attended_to(side):
    made = foreign_tokenizer()
    row = encode(made, MESSAGES, CHATML)
    width, pads = len(row["input_ids"]), 3
    fill = {
        "input_ids": [made.pad_token_id] * pads,
        "labels": [IGNORE_INDEX] * pads,
        "attention_mask": [0] * pads,
    }
    row["attention_mask"] = [1] * width
    padded = {k: fill[k] + row[k] if side == "left" else row[k] + fill[k] for k in row}
    tokens = token_view(made, MESSAGES, padded).tokens
    real = tokens[pads:] if side == "left" else tokens[:width]
    assert real == token_view(made, MESSAGES).tokens
    unreal = tokens[:pads] if side == "left" else tokens[width:]
    assert {token.label for token in unreal} == {"padding, not attended"}


def test_a_row_cut_off_keeps_its_roles_and_one_of_other_messages_gets_none():
    made = foreign_tokenizer()
    row = encode(made, MESSAGES, CHATML)
    cut = {k: v[:-4] for k, v in row.items()}
    assert token_view(made, MESSAGES, cut).tokens == token_view(made, MESSAGES).tokens[:-4]
    other = encode(made, ragged_conversations()[5]["messages"], CHATML)
    assert {token.role for token in token_view(made, MESSAGES, other).tokens} == {"text"}


def test_the_page_says_in_words_all_that_it_says_in_colour():
    view = token_view(foreign_tokenizer(), MESSAGES)
    page = view._repr_html_()
    text = visible_text(page)
    for label in ("system:", "user:", "assistant, in loss:", "template, in loss:", "template:"):
        assert label in text
    assert "‹<|im_end|>›" in text
    assert "⏎" in text
    learnt = sum(token.in_loss for token in view.tokens)
    assert f"{len(view.tokens)} tokens, {learnt} of them in the loss" in text
    assert 'aria-label="Tokens by role"' in page
    assert page.count("display: inline-block") == len(view.tokens)  # else a long run does not wrap
    assert re.sub(r"\s", "", repr(view)).startswith("[template]‹<|im_start|>›")


def test_markup_in_a_message_is_shown_and_not_obeyed():
    made = foreign_tokenizer()
    attack = '<script>alert("x")</script> <b>&amp;</b>'
    view = token_view(made, [{"role": "user", "content": attack}, MESSAGES[-1]])
    page = view._repr_html_()
    assert set(re.findall(r"</?(\w+)", page)) == {"section", "p", "strong", "ol", "li", "span", "br"}
    said = "".join(token.text for token in view.tokens if token.role == "user")
    assert said == attack


def test_parts_of_a_character_are_shown_by_their_name_in_the_vocabulary():
    made = foreign_tokenizer()
    view = token_view(made, [{"role": "user", "content": "owl é 猫"}, MESSAGES[-1]])
    assert not any("\ufffd" in token.text for token in view.tokens)
    assert all(token.text for token in view.tokens)


def test_tints_carry_black_text():
    from ftkit.chat.token_view import TINTS

    def luminance(colour: str) -> float:  # WCAG 2
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    assert all((luminance(tint) + 0.05) / 0.05 > 7 for tint in TINTS.values())  # level AAA


def test_without_markers_the_mask_is_derived_and_without_a_template_it_refuses():
    derived, marked = (token_view(tokenizer(text), MESSAGES).tokens for text in (UNMARKED, CHATML))
    # The line break after <|im_end|> belongs to the turn, and the markers eat it.
    in_loss = [[t.text for t in tokens if t.in_loss and t.text != "\n"] for tokens in (derived, marked)]
    assert in_loss[0] == in_loss[1] == ["the", "<|im_end|>"]


def test_on_a_terminal_the_loss_has_a_colour():
    view = token_view(tokenizer(), MESSAGES)
    assert view.terminal(colour=False) == repr(view)
    assert "\033[1;32m" in view.terminal(colour=True)
    with pytest.raises(ValueError, match="no chat template"):
        token_view(tokenizer(None), MESSAGES)
