"""Checks of a chat template: content, system turn, end of turn, loss mask, and whether generation sees the prompts
that training did.
"""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftkit.findings import Finding, finding_codes

from .findings import finding
from .rendering import (
    ANSWER,
    CHAT,
    QUESTION,
    SECOND_ANSWER,
    SECOND_QUESTION,
    EndOfTurn,
    Messages,
    Renderer,
    TemplateFailed,
    find_end_of_turn,
    find_training_template,
    own_template,
    stop_ids,
)


def check_generation_prompt(prompt_renderer: Renderer, train_renderer: Renderer, messages: Messages) -> list[Finding]:
    """Check that the training text begins with the generation prompt of each answer, as text and as tokens.

    Returns at most one finding, of the first answer that differs. Raises TemplateFailed.
    """
    full = train_renderer.text(messages)
    ids = train_renderer.tokens(messages)
    for k, message in enumerate(messages):
        if message["role"] != "assistant" or k == 0:
            continue
        prompt = prompt_renderer.text(messages[:k], add_generation_prompt=True)
        if not full.startswith(prompt):
            return [finding("prompt-differs", f"before answer {_count(messages, k)}: {_differ(prompt, full)}")]
        prompt_ids = prompt_renderer.tokens(messages[:k], add_generation_prompt=True)
        if ids[: len(prompt_ids)] != prompt_ids:
            first = next(i for i, (a, b) in enumerate(zip(prompt_ids, ids, strict=False)) if a != b)
            pieces = prompt_renderer.tokenizer.convert_ids_to_tokens([prompt_ids[first], ids[first]])
            return [finding("tokens-merge", f"the prompt's {pieces[0]!r} becomes {pieces[1]!r} in training")]
    return []


def check_prefix_preserving(renderer: Renderer) -> list[Finding]:
    """Check that a turn is rendered the same when more turns follow. Raises TemplateFailed."""
    short, long = renderer.text(CHAT[:2]), renderer.text(CHAT)
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
    template = own_template(tokenizer)
    if template is None:
        return find_training_template(tokenizer)[1]
    prompt_renderer = Renderer(tokenizer, template)
    found = _check_content(prompt_renderer)
    if any(f.code == "wants-content-blocks" for f in found):
        prompt_renderer = Renderer(tokenizer, template, content_blocks=True)
    elif found:
        return found
    training, about_markers = find_training_template(tokenizer)
    found += about_markers
    train_renderer = Renderer(tokenizer, training or template, prompt_renderer.content_blocks)
    try:
        found += _check_system(prompt_renderer) + _check_whitespace(train_renderer) + _check_bos(prompt_renderer)
        found += _check_date(template) + _check_end_of_turn(train_renderer, model)
        if training:
            codes = finding_codes(found)
            found += [f for f in _check_loss_mask(prompt_renderer, train_renderer) if f.code not in codes]
        found += check_generation_prompt(prompt_renderer, train_renderer, CHAT)
        found += check_prefix_preserving(train_renderer) + _check_round_trip(train_renderer)
    except TemplateFailed as error:
        found.append(finding("template-fails", f"with two questions and answers: {error}"))
    if not prompt_renderer.content_blocks:
        found += check_tool_prefix(tokenizer)
    return found


def _check_content(renderer: Renderer) -> list[Finding]:
    try:
        text = renderer.text(CHAT[:2])
    except TemplateFailed as error:
        text, problem = "", str(error)
    else:
        lost = [t for t in (QUESTION, ANSWER) if t not in text]
        if not lost:
            return []
        problem = f"{lost[0]!r} is not in the text that it writes"
    try:
        text_of_blocks = Renderer(renderer.tokenizer, renderer.template, content_blocks=True).text(CHAT[:2])
    except TemplateFailed:
        text_of_blocks = ""
    if QUESTION in text_of_blocks and ANSWER in text_of_blocks:
        return [finding("wants-content-blocks", f"with plain strings: {problem}")]
    return [finding("content-lost" if text else "template-fails", problem)]


def _check_system(renderer: Renderer) -> list[Finding]:
    try:
        text = renderer.text([{"role": "system", "content": SYSTEM}, *CHAT[:2]])
    except TemplateFailed as error:
        return [finding("system-rejected", str(error))]
    return [] if SYSTEM in text else [finding("system-dropped", f"{SYSTEM!r} is not in the text it writes")]


def _check_whitespace(renderer: Renderer) -> list[Finding]:
    text = renderer.text([CHAT[0], {"role": "assistant", "content": SPACED}])
    if SPACED in text:
        return []
    start = text.rfind(ANSWER)
    kept = text[:start][-4:], text[start + len(ANSWER) :][:3]
    return [finding("strips-whitespace", f"the answer {SPACED!r} stands between {kept[0]!r} and {kept[1]!r}")]


def _check_bos(renderer: Renderer) -> list[Finding]:
    tokenizer, bos = renderer.tokenizer, renderer.tokenizer.bos_token_id
    if bos is None:
        return []
    if renderer.tokens(CHAT[:2])[:2] == [bos, bos]:
        return [finding("bos-doubled", f"the template itself begins with {tokenizer.bos_token!r} twice")]
    if tokenizer(renderer.text(CHAT[:2]))["input_ids"][:2] == [bos, bos]:
        return [finding("bos-doubled", f"tokenizer(rendered text) begins with {tokenizer.bos_token!r} twice")]
    return []


def _check_date(template: str) -> list[Finding]:
    return [finding("date-in-prompt", "it calls strftime_now")] if "strftime_now" in template else []


def _check_end_of_turn(renderer: Renderer, model: PreTrainedModel | None) -> list[Finding]:
    """Check that the last answer ends with a special token that is in the loss and stops generate()."""
    tokenizer, rendered = renderer.tokenizer, renderer.rendered(CHAT)
    end_of_turn = find_end_of_turn(tokenizer, rendered, SECOND_ANSWER)
    if not end_of_turn.positions:
        return [finding("turn-not-closed", f"the text ends with {rendered.text[-30:]!r}")]
    masked = rendered.has_generation_markers
    ends = end_of_turn.special_positions
    if masked and not any(rendered.loss_mask[i] for i in ends or end_of_turn.positions):
        return [_not_in_loss(end_of_turn, SECOND_ANSWER)]
    if not ends:
        observed = f"{end_of_turn.text.strip()!r} closes a turn, {len(end_of_turn.positions)} ordinary tokens"
        return [finding("turn-end-is-text", observed)]
    end_ids = [rendered.input_ids[i] for i in ends if rendered.loss_mask[i] or not masked]
    if stop_ids(tokenizer, model) & set(end_ids):
        return []
    end = tokenizer.convert_ids_to_tokens(end_ids[0])
    return [finding("turn-end-is-not-eos", f"{end!r} closes a turn and EOS is {tokenizer.eos_token!r}")]


def _check_loss_mask(prompt_renderer: Renderer, train_renderer: Renderer) -> list[Finding]:
    full = train_renderer.rendered(CHAT)
    in_loss = full.loss_text
    if lost := [answer for answer in (ANSWER, SECOND_ANSWER) if answer not in in_loss]:
        return [finding("answer-not-in-loss", f"{lost[0]!r} is not in the loss, {in_loss[:60]!r}")]
    found = []
    if wrong := [question for question in (QUESTION, SECOND_QUESTION) if question in in_loss]:
        found.append(finding("prompt-in-loss", f"{wrong[0]!r} is in the loss"))
    # The last turn may be closed in another way than those before it.
    end_of_turn = find_end_of_turn(prompt_renderer.tokenizer, full, ANSWER, until=SECOND_QUESTION)
    if end_of_turn.special_positions and not any(full.loss_mask[i] for i in end_of_turn.special_positions):
        found.append(_not_in_loss(end_of_turn, ANSWER))
    prompt = prompt_renderer.text(CHAT[:1], add_generation_prompt=True)
    gap = full.text[len(prompt) : full.spans[full.loss_mask.index(True)][0]]
    if full.text.startswith(prompt) and gap:
        found.append(finding("gap-before-answer", f"{gap!r} stands between prompt and loss mask"))
    return found


def _not_in_loss(end_of_turn: EndOfTurn, answer: str) -> Finding:
    return finding("stop-not-in-loss", f"{end_of_turn.text.strip()[:30]!r} after {answer!r} is outside the loss mask")


def _check_round_trip(renderer: Renderer) -> list[Finding]:
    text = renderer.text(CHAT)
    back = renderer.tokenizer.decode(renderer.tokens(CHAT), clean_up_tokenization_spaces=False)
    if back == text:
        return []
    same = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), len(back))
    here = slice(max(0, same - 10), same + 20)
    return [finding("round-trip-lossy", f"{text[here]!r} comes back as {back[here]!r}")]
