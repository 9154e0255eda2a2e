"""What is found of one chat template, and the totals of many."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import trl

from ftkit.chat import check_chat_template, finding_codes
from ftkit.conversations.rendering import ANSWER, CHAT, ChatTemplate, TemplateFailed

from .comparing import SPACE_AFTER, SPACE_BEFORE, Derived, hand_spans, marked_spans
from .tokenizers import tokenizer_for

SPACE = {SPACE_AFTER, SPACE_BEFORE}
Row = dict[str, Any]
KNOWN = ("name", "family", "model", "repository", "path", "commit", "sha256")  # where a template is published
TRL = Path(trl.__file__).parent / "chat_templates"
CALL = {"type": "function", "id": "a1b2c3d4e", "function": {"name": "times", "arguments": {"a": 6, "b": 7}}}
CALLING = {"role": "assistant", "content": "", "reasoning_content": "A product.", "tool_calls": [CALL]}
# All that a conversation may have, for what a template does with it; many refuse a part.
AGENT = [
    {"role": "system", "content": "Be brief."},
    CHAT[0],
    CALLING,
    {"role": "tool", "name": "times", "tool_call_id": "a1b2c3d4e", "content": "42"},
    {"role": "assistant", "content": ANSWER, "reasoning_content": "It says 42."},
]
NUMBER = {"type": "integer", "description": "A factor."}
PARAMETERS = {"type": "object", "properties": {"a": NUMBER, "b": NUMBER}, "required": ["a", "b"]}
TOOLS = [{"type": "function", "function": {"name": "times", "description": "Multiply two.", "parameters": PARAMETERS}}]


def examine(entry: Row, source: str, by_hand: Row | None = None) -> Row:
    """The row of one template.

    Args:
        entry: with KNOWN, the special tokens `bos` and `eos`, and `trl_training`, the name of TRL's training version.
        by_hand: the mask that somebody found by reading: `spans`, one for each turn not in `excluded`, and `why`.

    Raises whatever ftkit lets through other than TemplateFailed.
    """
    template = _template(entry, source)
    row = {key: entry[key] for key in (*KNOWN, "bos", "eos")}
    row |= {"turns": 0, "loss": [], "problems": [], "hand": by_hand, "markers": _compare_markers(entry, template)}
    try:
        derived = Derived(template, CHAT)
        row["turns"] = len(derived.spans)
        row["loss"] = [derived.text[slice(*span)] for span in derived.spans]
        row["problems"] = [f"message {t.message}: {_reason(t.problem)}" for t in derived.turns if t.problem]
        if by_hand:
            spans = hand_spans(derived.text, by_hand["spans"], CHAT, by_hand["excluded"])
            row["hand"] = by_hand | {"differs": derived.compare(spans)}
    except TemplateFailed as error:
        row["problems"] = [_reason(str(error))]
    return row | {"agent": _agent(template), "findings": sorted(finding_codes(check_chat_template(template.tokenizer)))}


def _template(entry: Row, source: str) -> ChatTemplate:
    return ChatTemplate(tokenizer_for(source, entry["bos"], entry["eos"]), source)


def _compare_markers(entry: Row, template: ChatTemplate) -> Row | None:
    """The derived mask against the markers of the template, or of TRL's training version; None without either."""
    if not template.has_generation_markers:
        if not entry["trl_training"]:
            return None
        template = _template(entry, (TRL / entry["trl_training"]).read_text(encoding="utf-8"))
    derived = Derived(template, CHAT)
    return {"of": entry["trl_training"] or "itself", "differs": derived.compare(marked_spans(template, CHAT))}


def _agent(template: ChatTemplate) -> str:
    """How many turns are located in AGENT, and whether the call is written; or why it cannot be written."""
    try:
        derived = Derived(template, AGENT, TOOLS)
    except TemplateFailed as error:
        return _reason(str(error))
    calls = [derived.text[t.start : t.end] for t in derived.located if t.message == AGENT.index(CALLING)]
    lost = any(CALL["function"]["name"] not in call for call in calls)
    return f"{len(derived.spans)} of {len(derived.turns)} turns" + ", without the tool call" * lost


def _reason(problem: str) -> str:
    """A problem without a text that the template itself raises."""
    return re.sub(r"TemplateError: .*", "the template raises an error of its own", problem, flags=re.DOTALL)


def totals(rows: list[Row]) -> Row:
    """The numbers of templates: by turns located, by hand, against markers, and the families."""
    hand = [row["hand"] for row in rows if row["hand"]]
    markers = [row["markers"] for row in rows if row["markers"]]
    families = Counter(row["family"] for row in rows)
    return {
        "templates": len(rows),
        "families": len(families),
        "with both turns in the loss": sum(row["turns"] == 2 for row in rows),
        "with one turn in the loss": sum(row["turns"] == 1 for row in rows),
        "with none": sum(row["turns"] == 0 for row in rows),
        "read by hand": len(hand),
        "families read by hand": len({row["family"] for row in rows if row["hand"]}),
        "equal to the reading by hand": sum(not one["differs"] for one in hand),
        "equal but for white space": sum(set(one["differs"]) <= SPACE for one in hand),
        "with markers": len(markers),
        "equal to the markers": sum(not one["differs"] for one in markers),
        "differences from the reading by hand": _count_reasons(hand),
        "differences from the markers": _count_reasons(markers),
        "templates of each family": dict(sorted(families.items())),
    }


def _count_reasons(compared: list[Row]) -> dict[str, int]:
    """In how many templates each reason occurs."""
    return dict(sorted(Counter(reason for one in compared for reason in one["differs"]).items()))
