"""Checks of a chat template: content, system turn, end of turn, loss mask, and whether generation sees the prompts
that training did.
"""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftkit.conversations.rendering import (
    ANSWER,
    CHAT,
    QUESTION,
    SECOND_ANSWER,
    SECOND_QUESTION,
    ChatTemplate,
    Messages,
    TemplateFailed,
    own_template,
)
from ftkit.conversations.turns import Turn
from ftkit.findings import Finding, finding_codes

from .findings import finding
from .rendering import EndOfTurn, find_end_of_turn, find_training_template, render, stop_ids, tokens


def check_generation_prompt(
    own: ChatTemplate, training: ChatTemplate, messages: Messages, tools: list | None = None, **kwargs
) -> list[Finding]:
    """Check that the training text begins with the generation prompt of each answer, as text and as tokens.

    Args:
        own: the template that generates; `training` is the one to train with.

    Returns at most one finding, of the first answer that differs. Raises TemplateFailed.
    """
    full, ids = training.text(messages, tools, **kwargs), tokens(training, messages, tools=tools, **kwargs)
    for k, message in enumerate(messages):
        if message["role"] != "assistant" or k == 0:
            continue
        given = {"tools": tools, "add_generation_prompt": True, **kwargs}
        prompt = own.text(messages[:k], **given)
        if not full.startswith(prompt):
            return [finding("prompt-differs", f"before answer {_count(messages, k)}: {_differ(prompt, full)}")]
        prompt_ids = tokens(own, messages[:k], **given)
        if ids[: len(prompt_ids)] != prompt_ids:
            first = next(i for i, (a, b) in enumerate(zip(prompt_ids, ids, strict=False)) if a != b)
            pieces = own.tokenizer.convert_ids_to_tokens([prompt_ids[first], ids[first]])
            return [finding("tokens-merge", f"the prompt's {pieces[0]!r} becomes {pieces[1]!r} in training")]
    return []


def check_prefix_preserving(template: ChatTemplate) -> list[Finding]:
    """Check that a turn is rendered the same when more turns follow. Raises TemplateFailed."""
    short, long = template.text(CHAT[:2]), template.text(CHAT)
    if long.startswith(short):
        return []
    return [finding("history-changes", f"once others follow: {_differ(short, long)}")]


def check_tool_prefix(tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    """TRL's prefix check, for templates that support tools; no finding where it raises."""
    if "tool" not in (own_template(tokenizer) or ""):
        return []  # and no need to import TRL, which takes seconds
    from trl.chat_template_utils import is_chat_template_prefix_preserving, supports_tool_calling

    try:
        changes = supports_tool_calling(tokenizer) and not is_chat_template_prefix_preserving(tokenizer)
    except Exception:  # of a template that rejects a role
        return []
    return [finding("tool-turns-change", "a tool's result changes the turns before it")] if changes else []


def _count(messages: Messages, k: int) -> int:
    return sum(m["role"] == "assistant" for m in messages[: k + 1])


def _differ(short: str, long: str) -> str:
    same = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(long))
    before = short[max(0, same - 12) : same]
    return f"after {before!r} comes {long[same : same + 24]!r} instead of {short[same : same + 24]!r}"


SYSTEM = "Answer like a pirate."
SPACED = f"\n\n\n\n\n  {ANSWER}  \n"  # code is indented, and lists end with a line break


def check_chat_template(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> list[Finding]:
    """Check the tokenizer's chat template on small conversations.

    Loss mask and end of turn are checked on TRL's training version of a template without generation markers,
    where there is one.

    Args:
        model: used only for the EOS ids of its generation config.
    """
    source = own_template(tokenizer)
    training, about_training = find_training_template(tokenizer)
    if source is None:
        return about_training
    own = ChatTemplate(tokenizer, source)
    found = _check_content(own)
    if found and not own.wants_blocks:
        return found
    found += about_training
    try:
        found += _check_system(own) + _check_whitespace(training) + _check_bos(own)
        found += _check_date(own) + _check_end_of_turn(training, model)
        codes = finding_codes(found)
        found += [f for f in _check_loss_mask(own, training) if f.code not in codes]
        found += check_generation_prompt(own, training, CHAT)
        found += check_prefix_preserving(training) + _check_round_trip(training)
    except TemplateFailed as error:
        found.append(finding("template-fails", f"with two questions and answers: {error}"))
    if not own.wants_blocks:
        found += check_tool_prefix(tokenizer)
    return found


def _check_content(template: ChatTemplate) -> list[Finding]:
    if template.wants_blocks:
        return [finding("wants-content-blocks", "plain strings are lost or refused, and lists of text blocks are not")]
    try:
        text = template.text(CHAT[:2])
    except TemplateFailed as error:
        return [finding("template-fails", str(error))]
    lost = [t for t in (QUESTION, ANSWER) if t not in text]
    return [finding("content-lost", f"{lost[0]!r} is not in the text that it writes")] if lost else []


def _check_system(template: ChatTemplate) -> list[Finding]:
    try:
        text = template.text([{"role": "system", "content": SYSTEM}, *CHAT[:2]])
    except TemplateFailed as error:
        return [finding("system-rejected", str(error))]
    return [] if SYSTEM in text else [finding("system-dropped", f"{SYSTEM!r} is not in the text it writes")]


def _check_whitespace(template: ChatTemplate) -> list[Finding]:
    text = template.text([CHAT[0], {"role": "assistant", "content": SPACED}])
    if SPACED in text:
        return []
    start = text.rfind(ANSWER)
    kept = text[:start][-4:], text[start + len(ANSWER) :][:3]
    return [finding("strips-whitespace", f"the answer {SPACED!r} stands between {kept[0]!r} and {kept[1]!r}")]


def _check_bos(template: ChatTemplate) -> list[Finding]:
    tokenizer, bos = template.tokenizer, template.tokenizer.bos_token_id
    if bos is None:
        return []
    if tokens(template, CHAT[:2])[:2] == [bos, bos]:
        return [finding("bos-doubled", f"the template itself begins with {tokenizer.bos_token!r} twice")]
    if tokenizer(template.text(CHAT[:2]))["input_ids"][:2] == [bos, bos]:
        return [finding("bos-doubled", f"tokenizer(rendered text) begins with {tokenizer.bos_token!r} twice")]
    return []


def _check_date(template: ChatTemplate) -> list[Finding]:
    """Find today's date in the text, not in a branch that is not taken: a macro of the same name stands in for it."""
    standing_in = "{%- macro strftime_now(format) -%}today's date{%- endmacro -%}"
    chats = CHAT[:2], [{"role": "system", "content": SYSTEM}, *CHAT[:2]]
    for chat in chats if "strftime_now" in template.source else ():
        try:
            text = ChatTemplate(template.tokenizer, standing_in + template.source).text(chat)
        except TemplateFailed:
            continue
        if "today's date" in text:
            return [finding("date-in-prompt", "it writes the date of today")]
    return []


def _check_end_of_turn(template: ChatTemplate, model: PreTrainedModel | None) -> list[Finding]:
    """Check that the last answer ends with a special token that is in the loss and stops generate()."""
    tokenizer, rendered = template.tokenizer, render(template, CHAT)
    end_of_turn = find_end_of_turn(tokenizer, rendered, SECOND_ANSWER)
    if not end_of_turn.positions:
        return [finding("turn-not-closed", f"the text ends with {rendered.text[-30:]!r}")]
    ends = end_of_turn.special_positions
    if not any(rendered.loss_mask[i] for i in ends or end_of_turn.positions):
        return [_not_in_loss(end_of_turn, SECOND_ANSWER)]
    if not ends:
        observed = f"{end_of_turn.text.strip()!r} closes a turn, {len(end_of_turn.positions)} ordinary tokens"
        return [finding("turn-end-is-text", observed)]
    end_ids = [rendered.input_ids[i] for i in ends if rendered.loss_mask[i]]
    stops = stop_ids(tokenizer, model)
    if stops & set(end_ids):
        return []
    names = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(sorted(stops)))) or "nothing"
    end = tokenizer.convert_ids_to_tokens(end_ids[0])
    return [finding("turn-end-is-not-eos", f"{end!r} closes a turn, and generate() stops at {names}")]


def _check_loss_mask(own: ChatTemplate, training: ChatTemplate) -> list[Finding]:
    full = render(training, CHAT)
    if full.problems:
        return [finding("turns-not-in-loss", f"with two questions and answers: {describe_turns(full.problems)}")]
    if lost := [answer for answer in (ANSWER, SECOND_ANSWER) if answer not in full.loss_text]:
        return [finding("answer-not-in-loss", f"{lost[0]!r} is not in the loss, {full.loss_text[:60]!r}")]
    found = []
    if wrong := [text for text in _others_in_loss(training) if text]:
        found.append(finding("prompt-in-loss", f"{wrong[0]!r} is in the loss"))
    # The last turn may be closed in another way than those before it.
    end_of_turn = find_end_of_turn(own.tokenizer, full, ANSWER, until=SECOND_QUESTION)
    if end_of_turn.special_positions and not any(full.loss_mask[i] for i in end_of_turn.special_positions):
        found.append(_not_in_loss(end_of_turn, ANSWER))
    prompt = own.text(CHAT[:1], add_generation_prompt=True)
    start = full.loss_spans[0][0]
    if full.text.startswith(prompt) and full.text[len(prompt) : start]:
        observed = f"{full.text[len(prompt) : start]!r} stands between prompt and loss mask"
        found.append(finding("gap-before-answer", observed))
    if not wrong and full.text.startswith(prompt) and full.text[start : len(prompt)].strip():
        found.append(finding("role-header-in-loss", f"{full.text[start : len(prompt)]!r} is in the loss"))
    return found


def _others_in_loss(template: ChatTemplate) -> list[str]:
    """Texts of the system, the user and a tool that are in the loss, of which only templates with markers have any."""
    result = "forty-two in the result"
    call = {"type": "function", "id": "000000000", "function": {"name": "times", "arguments": {"a": 6, "b": 7}}}
    asked = [CHAT[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    answered = [{"role": "tool", "tool_call_id": "000000000", "name": "times", "content": result}, CHAT[1]]
    found = []
    chats = [CHAT, [{"role": "system", "content": SYSTEM}, *CHAT[:2]]]
    for chat in chats + [asked + answered] * ("tool" in template.source):
        try:
            in_loss = render(template, chat).loss_text
        except TemplateFailed:
            continue
        found += [m["content"] for m in chat if m["role"] != "assistant" and m["content"] in in_loss]
    return found


def describe_turns(turns: list[Turn]) -> str:
    more = f", and {len(turns) - 1} more" if len(turns) > 1 else ""
    return f"message {turns[0].message + 1}, because {turns[0].problem}{more}"


def _not_in_loss(end_of_turn: EndOfTurn, answer: str) -> Finding:
    return finding("stop-not-in-loss", f"{end_of_turn.text.strip()[:30]!r} after {answer!r} is outside the loss mask")


def _check_round_trip(template: ChatTemplate) -> list[Finding]:
    text = template.text(CHAT)
    back = template.tokenizer.decode(tokens(template, CHAT), clean_up_tokenization_spaces=False)
    if back == text:
        return []
    same = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), len(back))
    here = slice(max(0, same - 10), same + 20)
    return [finding("round-trip-lossy", f"{text[here]!r} comes back as {back[here]!r}")]
