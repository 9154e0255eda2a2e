"""The explorer: each control changes what is shown, and what is shown is what the checks and the template say."""

import html
import re

import pytest

from ftcourse.explorers.chat_template import ChatExplorer, findings_page
from ftkit.chat import check_chat_template, check_dataset, check_tokenizer, finding_codes
from ftkit.models import load_base
from tests.ftkit.chat.cases import CHATML, UNMARKED, tokenizer
from tests.tiny import ragged_conversations

LATE_END = CHATML.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
CHATS = {f"row {k}": row["messages"] for k, row in enumerate(ragged_conversations(3))}


def made() -> ChatExplorer:
    return ChatExplorer({"sound": tokenizer(), "never stops": tokenizer(LATE_END)}, CHATS)


def words(explorer: ChatExplorer) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", explorer.picture.value))


def learnt(explorer: ChatExplorer) -> int:
    return int(re.search(r"tokens, (\d+) of them in the loss", explorer.picture.value)[1])


def test_the_tokenizer_menu_changes_findings_and_view():
    explorer = made()
    assert "stop-not-in-loss" not in finding_codes(explorer.findings)
    before = learnt(explorer)
    explorer.tokenizer_menu.value = "never stops"
    assert finding_codes(explorer.findings)[0] == "stop-not-in-loss"  # the worst comes first
    assert "✘ error: stop-not-in-loss" in explorer.picture.value.replace("<strong>", "")
    assert learnt(explorer) == before - sum(m["role"] == "assistant" for m in CHATS["row 0"])


def test_findings_are_those_of_the_checks():
    explorer = made()
    bad, row = tokenizer(LATE_END), {"messages": CHATS["row 0"]}
    explorer.tokenizer_menu.value = "never stops"
    wanted = {
        *finding_codes(check_tokenizer(bad) + check_chat_template(bad)),
        *finding_codes(check_dataset(bad, [row], 512)),
    }
    assert set(finding_codes(explorer.findings)) == wanted
    assert len(finding_codes(explorer.findings)) == len(wanted)  # each said once


def test_the_conversation_menu_and_the_slider_change_what_is_shown():
    explorer = made()
    explorer.conversation_menu.value = "row 1"
    for message in CHATS["row 1"]:
        assert message["content"].split()[0][:3] in words(explorer)
    whole = learnt(explorer)
    explorer.length_slider.value = 8
    assert "8 tokens" in words(explorer)
    assert learnt(explorer) < whole
    assert {"answer-cut-off", "all-labels-masked"} & set(finding_codes(explorer.findings))


def test_a_template_without_markers_has_its_answers_in_the_loss():
    explorer = ChatExplorer({"unmarked": tokenizer(UNMARKED)}, CHATS)
    assert learnt(explorer) >= learnt(ChatExplorer({"marked": tokenizer()}, CHATS)) > 0
    assert "no-generation-markers" in finding_codes(explorer.findings)


def test_what_is_stored_is_short_and_what_is_shown_is_safe():
    attack = "<script>alert(1)</script>"
    rows = [{"role": "user", "content": attack}, {"role": "assistant", "content": attack}]
    explorer = ChatExplorer({"pocket": load_base()[1]}, {attack: rows})
    assert len(repr(explorer)) < 200
    explorer.length_slider.value = explorer.length_slider.max
    assert "<script" not in explorer.picture.value
    assert "No findings" in findings_page([])


def test_what_cannot_be_shown_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match="at least one"):
        ChatExplorer({}, CHATS)
    with pytest.raises(ValueError, match="'bare' has no chat template"):
        ChatExplorer({"bare": tokenizer(None)}, CHATS)
