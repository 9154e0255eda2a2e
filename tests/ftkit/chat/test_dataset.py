"""Conversations through template, tokenizer and maximal length: every loss is counted and located."""

import pytest

from ftkit.chat import check_dataset, finding_codes
from ftkit.conversations import ConversationError, encode, load_chat
from ftkit.models import load_base
from tests.tiny import foreign_tokenizer, ragged_conversations

from .cases import CHATML, ROWS, WITH_SYSTEM, data, tokenizer


def test_sound_conversations_have_no_findings():
    assert check_dataset(foreign_tokenizer(), ragged_conversations(), max_length=128) == []


def test_the_almanacs_chats_are_sound_on_pocket_base():
    assert check_dataset(load_base()[1], load_chat()["train"], max_length=512) == []


def test_only_some_rows():
    rows = [*ROWS, WITH_SYSTEM[0], ROWS[0]]
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    found, repeated = data(refuses, rows)
    assert repeated.code == "duplicate-example"
    assert found.code == "row-fails"
    assert found.observed.startswith("1 of 8 examples (first: 7): ")
    assert "no system" in found.observed


def test_truncation_is_counted_as_encoding_would_cut():
    made, rows = foreign_tokenizer(), ragged_conversations()
    encoded = [encode(made, row["messages"], CHATML) for row in rows]
    for limit in (10, 25, 40):
        lost = [any(label >= 0 for label in e["labels"][limit:]) for e in encoded]
        gone = [all(label < 0 for label in e["labels"][:limit]) for e in encoded]
        seen = {f.code: f.observed for f in check_dataset(made, rows, max_length=limit)}
        for code, hit in (("answer-cut-off", lost), ("all-labels-masked", gone)):
            assert (code in seen) == any(hit)
            if any(hit):
                first = hit.index(True) + 1
                assert seen[code].startswith(f"{sum(hit)} of {len(rows)} examples (first: {first})")


def test_a_tool_call_that_is_not_written_is_lost_text():
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"word": "owl"}}}
    turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    rows = [{"messages": [ROWS[0]["messages"][0], turn]}]
    (found,) = [f for f in data(CHATML, rows) if f.code == "text-lost"]
    assert "look_up" in found.observed
    writes = CHATML.replace(
        "{{ m.content }}<|im_end|>{% endgen",
        "{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}<|im_end|>{% endgen",
    )
    assert data(writes, rows) == []


def test_without_template_or_markers_it_says_so():
    assert finding_codes(data(None)) == ["no-template"]
    unmarked = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert finding_codes(data(unmarked)) == ["no-generation-markers"]


def test_no_conversations_are_refused():
    with pytest.raises(ConversationError, match="at least one"):
        check_dataset(tokenizer(), [])
