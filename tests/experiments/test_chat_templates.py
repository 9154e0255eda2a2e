"""The record of published chat templates holds what is found of them, as far as their texts are at hand: TRL's are."""

import copy
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.chat_templates import __main__ as command
from experiments.chat_templates.comparing import (
    CLOSING,
    EARLIER,
    LEFT_OUT,
    NEXT_TURN,
    OTHER,
    PROMPT,
    SPACE_AFTER,
    SPACE_BEFORE,
    Derived,
    hand_spans,
    marked_spans,
    without_markers,
)
from experiments.chat_templates.examining import AGENT, TOOLS, examine, totals
from experiments.chat_templates.tokenizers import special_tokens, tokenizer_for
from ftkit.conversations.rendering import ANSWER, CHAT, MARKERS, ChatTemplate, TemplateFailed
from ftkit.models import data_dir
from tests.ftkit.chat import shipped
from tests.tiny import CHATML

RECORD = json.loads(command.RECORD.read_text(encoding="utf-8"))
ROWS = RECORD["templates"]
OF_TRL = {row["name"]: row for row in ROWS if row["repository"] == "huggingface/trl"}
REWRITTEN = "it is written in another way once later turns follow"
OTHER_END = "another token ends it once later turns follow"
NO_PROMPT = "the text before it is not what the model would be given to generate it"


# --- the record


def test_the_totals_are_those_of_the_rows():
    assert RECORD["totals"] == totals(ROWS)
    changed = copy.deepcopy(ROWS)
    changed[0]["turns"] -= 1
    assert totals(changed) != RECORD["totals"]
    changed = copy.deepcopy(ROWS)
    next(row for row in changed if row["hand"] and not row["hand"]["differs"])["hand"]["differs"] = {OTHER: 1}
    assert totals(changed) != RECORD["totals"]
    assert totals(ROWS[1:]) != RECORD["totals"]


def test_the_docs_say_what_the_record_holds():
    said = " ".join((Path(__file__).parents[2] / "docs" / "library.md").read_text(encoding="utf-8").split())
    of = RECORD["totals"]
    assert f"tried on {of['templates']} published templates of {of['families']} families" in said
    assert f"the markers of {of['with markers']}, and with those" in said
    assert f"by reading {of['read by hand']}." in said


def test_the_record_is_of_many_templates():
    assert len(ROWS) >= 119
    assert len({row["sha256"] for row in ROWS}) == len({row["name"] for row in ROWS}) == len(ROWS)
    assert sum(row["turns"] > 0 for row in ROWS) >= 110
    by_hand = [row for row in ROWS if row["hand"]]
    assert len(by_hand) >= 30
    assert len({row["family"] for row in by_hand}) >= 12


def test_every_row_says_where_the_template_is_and_why_a_turn_is_out():
    for row in ROWS:
        assert row["repository"].count("/") == 1, row["name"]
        assert row["path"], row["name"]
        assert len(row["sha256"]) == 64, row["name"]
        assert len(row["loss"]) == row["turns"] <= 2, row["name"]
        assert row["turns"] == 2 or row["problems"], row["name"]
        assert row["agent"], row["name"]


def test_the_record_holds_no_template():
    text = command.RECORD.read_text(encoding="utf-8").replace("{% generation %}", "")
    assert not [word for word in ("{%", "{{", "raise_exception") if word in text]


def test_the_text_of_the_record_is_one_template_a_line():
    text = command.RECORD.read_text(encoding="utf-8")
    assert command.as_text(RECORD) == text
    lines = text.splitlines()
    rows = lines[lines.index('"templates": [') + 1 : -2]
    assert [json.loads(line.removesuffix(","))["name"] for line in rows] == [row["name"] for row in ROWS]


def test_every_difference_is_explained():
    explained = {PROMPT, SPACE_AFTER, SPACE_BEFORE, NEXT_TURN, REWRITTEN, OTHER_END, NO_PROMPT}
    explained |= {LEFT_OUT, f"{LEFT_OUT}: {OTHER_END}"}
    for row in ROWS:
        for compared in filter(None, (row["hand"], row["markers"])):
            assert set(compared["differs"]) <= explained, row["name"]


# The masks read by hand that are others than the derived ones, but for white space after a turn.
NOT_AS_READ = {
    "trl-gptoss": {f"{LEFT_OUT}: {OTHER_END}"},
    "trl-nemotron-3-nano": {PROMPT},
    "codellama-70b-instruct-hf": {NO_PROMPT},
    "apertus-8b-instruct": {NEXT_TURN},
    "tencent-hy3": {NEXT_TURN},
    "vllm-chatml": {NEXT_TURN},
}


def test_the_masks_are_those_read_by_hand_but_for_what_is_known():
    differs = {row["name"]: set(row["hand"]["differs"]) - {SPACE_AFTER} for row in ROWS if row["hand"]}
    assert {name: why for name, why in differs.items() if why} == NOT_AS_READ


# --- live, on the templates that TRL has installed


def entry(row):
    of = row["markers"]["of"] if row["markers"] else None
    return row | {"trl_training": None if of == "itself" else of}


def hand(row):
    return {key: row["hand"][key] for key in ("spans", "excluded", "why")} if row["hand"] else None


def source(row):
    return shipped.text(Path(row["path"]).name)


@pytest.mark.parametrize("name", OF_TRL)
def test_what_is_recorded_of_trls_templates_is_found(name):
    row = OF_TRL[name]
    found = examine(entry(row), source(row), hand(row))
    assert json.loads(json.dumps(found)) == row


def test_trls_templates_are_in_the_record():
    assert len(OF_TRL) > 30
    assert sum(bool(row["hand"]) for row in OF_TRL.values()) >= 20


def test_a_template_that_closes_its_turns_otherwise_is_not_what_is_recorded():
    row = OF_TRL["trl-qwen2-5"]
    other = source(row).replace("<|im_end|>", "<|eot|>")
    found = examine(entry(row), other, None)
    assert found["loss"] != row["loss"]
    with pytest.raises(ValueError, match="substring not found"):
        examine(entry(row), other, hand(row))


CHATS = {
    "plain": (CHAT, None),
    "system": ([AGENT[0], *CHAT], None),
    "reasoning": ([m | ({"reasoning_content": "Sixes."} if m["role"] == "assistant" else {}) for m in CHAT], None),
    "tools": (AGENT, TOOLS),
}


# Where TRL's markers and the derived mask differ: in every conversation, and in some more. Nowhere else.
EVERYWHERE = {
    "deepseek_r1_distill": {PROMPT},
    "deepseekv3": {PROMPT},
    "llava_next": {SPACE_AFTER},
    "muse_glimmer": {PROMPT},
    "nemotron_3_5_lightning": {PROMPT},
    "nemotron_3_nano": {PROMPT},
    "nemotron_3_super": {PROMPT},
    "nemotron_3_ultra": {PROMPT},
    "qwen2_5": {PROMPT},
    "qwen3_5_nothink": {PROMPT},
    "qwen3_5_think": {PROMPT},
    "qwen3_6": {PROMPT},
    "qwen3_8": {PROMPT},
}
IN_SOME = {
    ("deepseek_r1_distill", "tools"): {EARLIER},  # the token that closes the tool's results is marked
    ("deepseekv3", "tools"): {EARLIER},
    ("diffusion_gemma", "reasoning"): {REWRITTEN},
    ("diffusion_gemma", "tools"): {CLOSING},  # <|tool_response>, at which generation stops
    ("glm4moe", "reasoning"): {REWRITTEN},
    ("gptoss", "plain"): {PROMPT, OTHER_END},
    ("gptoss", "system"): {PROMPT, OTHER_END},
    ("gptoss", "reasoning"): {PROMPT, REWRITTEN},
    ("gptoss", "tools"): {REWRITTEN},
    ("nemotron_3_5_lightning", "reasoning"): {REWRITTEN},
    ("nemotron_3_nano", "reasoning"): {REWRITTEN},
    ("nemotron_3_super", "reasoning"): {REWRITTEN},
    ("nemotron_3_ultra", "reasoning"): {REWRITTEN},
}
REFUSES = {(name, "tools") for name in ("cohere", "cohere2", "gemma", "gemma3", "llava_next")} | {("gemma", "system")}
TRAINING = [name.removesuffix("_training.jinja") for name in shipped.names() if name.endswith("_training.jinja")]


def trained_with(name, change=lambda source: source):
    """TRL's training template, with a tokenizer for it."""
    special = json.loads((data_dir() / "chat_templates.json").read_text(encoding="utf-8"))["templates"]
    row, text = special[f"{name}_training.jinja"], change(shipped.text(f"{name}_training.jinja"))
    return ChatTemplate(tokenizer_for(text, row["bos_token"], row["eos_token"]), text)


@pytest.mark.parametrize("name", TRAINING)
def test_derived_masks_are_those_of_trls_markers_but_for_what_is_known(name):
    template = trained_with(name)
    for chat, (messages, tools) in CHATS.items():
        try:
            derived = Derived(template, messages, tools)
        except TemplateFailed:
            assert (name, chat) in REFUSES
            continue
        assert (name, chat) not in REFUSES
        assert derived.text == template.render_marked(derived.messages, tools)[0]
        found = derived.compare(marked_spans(template, messages, tools))
        assert set(found) == EVERYWHERE.get(name, set()) | IN_SOME.get((name, chat), set()), chat


def test_markers_in_another_place_are_seen():
    """Negative controls: an answer without its closing token, and one turn alone."""
    template = trained_with("qwen3")
    derived = Derived(template, CHAT)
    spans = marked_spans(template, CHAT)
    assert derived.compare(spans) == {}
    assert derived.compare([(start, start + len(ANSWER)) for start, _ in spans]).keys() & {CLOSING, OTHER}
    assert set(derived.compare(spans[:1])) == {LEFT_OUT}
    assert EARLIER in derived.compare([(0, spans[0][1]), spans[1]])
    answer = derived.text.index(ANSWER)  # "It is forty-two.", without "is"
    assert derived.compare([(spans[0][0], answer + 3), (answer + 5, spans[0][1]), spans[1]]) == {OTHER: 2}


@pytest.mark.parametrize("dash", ["", "-"])
def test_a_template_without_markers_writes_the_same(dash):
    marks = "{%- generation -%} {{ m.content }} {%- endgeneration -%} ".replace("-", dash)
    source = "{% for m in messages %}{{ m.role }}: " + marks + "</s>{% endfor %}"
    template = ChatTemplate(tokenizer_for(source, None, "</s>"), source)
    plain = replace(template, source=without_markers(source))
    assert not MARKERS.search(plain.source)
    assert plain.render(CHAT) == template.render(CHAT) == template.render_marked(CHAT)[0]
    assert (f":{ANSWER}</s>" in plain.render(CHAT)) is bool(dash)


# --- its parts


def test_tokens_that_a_template_writes_are_single_tokens():
    source = "<|im_start|><｜User｜>[INST]</s><think><|turn>x<b>{{ '<|' + m.role + '|>' }}"
    names = ["<|im_start|>", "<｜User｜>", "[INST]", "</s>", "<think>", "<|turn>"]
    assert special_tokens(source) == [*names, "<|system|>", "<|user|>", "<|assistant|>"]
    made = tokenizer_for(source, "<s>", "</s>")
    assert [made.encode(name) for name in ("<s>", *names)] == [[made.convert_tokens_to_ids(n)] for n in ("<s>", *names)]
    assert len(made.encode("<b>")) == 3
    assert made.decode(made.encode("¿Qué hora es? 今天")) == "¿Qué hora es? 今天"


def test_the_parts_read_by_hand_are_looked_for_after_their_question():
    text = f"{ANSWER} is an example. {CHAT[0]['content']} {ANSWER}</s>{CHAT[2]['content']} No.</s>"
    assert [text[slice(*s)] for s in hand_spans(text, [f"{ANSWER}</s>", "No."], CHAT, [])] == [f"{ANSWER}</s>", "No."]
    assert hand_spans(text, [ANSWER], CHAT, [1])[0][0] > text.index(CHAT[0]["content"])
    assert hand_spans(text, ["No."], CHAT, [0]) == [(len(text) - 7, len(text) - 4)]


def test_a_folder_of_templates_makes_a_record(tmp_path, capsys):
    known = dict.fromkeys(("model", "commit", "trl_training"))
    known |= {"family": "own", "repository": "us/own", "path": "a", "sha256": "0" * 64}
    special = {"special_tokens": {"bos": None, "eos": "<|im_end|>"}}
    names = ["chatml", "raises"]
    (tmp_path / "index.json").write_text(json.dumps([{"name": name, **known, **special} for name in names]))
    (tmp_path / "chatml.jinja").write_text(CHATML)
    (tmp_path / "raises.jinja").write_text("{{ raise_exception('our own words') }}")
    spans = [f"{m['content']}<|im_end|>" for m in CHAT[1::2]]
    read = {"name": "chatml", "spans": spans, "excluded": [], "why": "Read.", "content": "string"}
    with pytest.raises(SystemExit):
        command.main([str(tmp_path)])
    assert "has no hand.json" in capsys.readouterr().err
    (tmp_path / "hand.json").write_text(json.dumps([read]))
    assert command.main([str(tmp_path), "--out", str(tmp_path / "record.json")]) == 0
    made = json.loads((tmp_path / "record.json").read_text())
    good, bad = made["templates"]
    assert (good["turns"], good["hand"]["differs"], good["markers"]) == (2, {}, {"of": "itself", "differs": {}})
    assert (bad["turns"], bad["problems"]) == (0, ["the template raises an error of its own"])
    assert "our own words" not in (tmp_path / "record.json").read_text()
    # Whatever else is raised ends the program, with the template's name.
    (tmp_path / "hand.json").write_text(json.dumps([read | {"spans": ["not there"] * 2}]))
    with pytest.raises(ValueError, match="substring") as error:
        command.main([str(tmp_path), "--out", str(tmp_path / "none.json")])
    assert error.value.__notes__ == ["with chatml"]
    assert not (tmp_path / "none.json").exists()


@pytest.mark.skipif("FTKIT_TEMPLATES" not in os.environ, reason="FTKIT_TEMPLATES names no folder with the templates")
def test_the_templates_give_the_record():
    made = command.make_record(Path(os.environ["FTKIT_TEMPLATES"]))
    assert command.as_text(made) == command.RECORD.read_text(encoding="utf-8")
