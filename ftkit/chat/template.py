"""What a model reads before an answer: the same in training and in generation, as text and as tokens?"""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .findings import Finding, finding, finding_codes
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


def check_generation_prompt(own: Renderer, trained: Renderer, messages: Messages) -> list[Finding]:
    """Compare the generation prompt of each answer with the beginning of the whole training text.

    `own` writes what the model is given when it generates, `trained` what it is trained on. At most one
    finding, of the first answer that has one. Raises TemplateFailed.
    """
    whole = trained.text(messages)
    ids = trained.tokens(messages)
    for k, message in enumerate(messages):
        if message["role"] != "assistant" or k == 0:
            continue
        prompt = own.text(messages[:k], add_generation_prompt=True)
        if not whole.startswith(prompt):
            return [finding("prompt-differs", f"before answer {_count(messages, k)}: {_differ(prompt, whole)}")]
        prompt_ids = own.tokens(messages[:k], add_generation_prompt=True)
        if ids[: len(prompt_ids)] != prompt_ids:
            first = next(i for i, (a, b) in enumerate(zip(prompt_ids, ids, strict=False)) if a != b)
            pieces = own.tokenizer.convert_ids_to_tokens([prompt_ids[first], ids[first]])
            return [finding("tokens-merge", f"the prompt's {pieces[0]!r} becomes {pieces[1]!r} in training")]
    return []


def check_prefix_preserving(trained: Renderer) -> list[Finding]:
    """Is a finished turn written the same when more turns follow? Raises TemplateFailed."""
    short, long = trained.text(CHAT[:2]), trained.text(CHAT)
    if long.startswith(short):
        return []
    return [finding("history-changes", f"once others follow: {_differ(short, long)}")]


def check_tool_prefix(tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    """TRL's own check, for templates that can write a tool call and its result; none where it raises."""
    if "tool" not in (own_template(tokenizer) or ""):
        return []  # and no need to import TRL, which takes seconds
    from trl.chat_template_utils import is_chat_template_prefix_preserving, supports_tool_calling

    try:
        changes = supports_tool_calling(tokenizer) and not is_chat_template_prefix_preserving(tokenizer)
    except Exception:  # it lets through what a template raises about roles that it does not know
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
    """Let the tokenizer's chat template write small conversations and say what is wrong with the result.

    `model` is only asked which tokens its generation config stops at. Where the template has no generation
    markers and TRL has a training version of it, loss mask and closing are judged by that version.
    """
    template = own_template(tokenizer)
    if template is None:
        return find_training_template(tokenizer)[1]
    own = Renderer(tokenizer, template)
    found = _check_content(own)
    if any(f.code == "wants-content-blocks" for f in found):
        own = Renderer(tokenizer, template, blocks=True)
    elif found:
        return found
    training, about_markers = find_training_template(tokenizer)
    found += about_markers
    trained = Renderer(tokenizer, training or template, own.blocks)
    try:
        found += _check_system(own) + _check_whitespace(trained) + _check_bos(own) + _check_date(template)
        found += _check_end_of_turn(trained, model)
        if training:
            found += [f for f in _check_loss_mask(own, trained) if f.code not in finding_codes(found)]
        found += (
            check_generation_prompt(own, trained, CHAT) + check_prefix_preserving(trained) + _check_round_trip(trained)
        )
    except TemplateFailed as error:
        found.append(finding("template-fails", f"with two questions and answers: {error}"))
    if not own.blocks:
        found += check_tool_prefix(tokenizer)
    return found


def _check_content(own: Renderer) -> list[Finding]:
    try:
        text = own.text(CHAT[:2])
    except TemplateFailed as error:
        text, problem = "", str(error)
    else:
        lost = [t for t in (QUESTION, ANSWER) if t not in text]
        if not lost:
            return []
        problem = f"{lost[0]!r} is not in the text that it writes"
    try:
        in_blocks = Renderer(own.tokenizer, own.template, blocks=True).text(CHAT[:2])
    except TemplateFailed:
        in_blocks = ""
    if QUESTION in in_blocks and ANSWER in in_blocks:
        return [finding("wants-content-blocks", f"with plain strings: {problem}")]
    return [finding("content-lost" if text else "template-fails", problem)]


def _check_system(own: Renderer) -> list[Finding]:
    try:
        text = own.text([{"role": "system", "content": SYSTEM}, *CHAT[:2]])
    except TemplateFailed as error:
        return [finding("system-rejected", str(error))]
    return [] if SYSTEM in text else [finding("system-dropped", f"{SYSTEM!r} is not in the text it writes")]


def _check_whitespace(trained: Renderer) -> list[Finding]:
    text = trained.text([CHAT[0], {"role": "assistant", "content": SPACED}])
    if SPACED in text:
        return []
    start = text.rfind(ANSWER)
    kept = text[:start][-4:], text[start + len(ANSWER) :][:3]
    return [finding("strips-whitespace", f"the answer {SPACED!r} stands between {kept[0]!r} and {kept[1]!r}")]


def _check_bos(own: Renderer) -> list[Finding]:
    tokenizer, bos = own.tokenizer, own.tokenizer.bos_token_id
    if bos is None:
        return []
    if own.tokens(CHAT[:2])[:2] == [bos, bos]:
        return [finding("bos-doubled", f"the template itself begins with {tokenizer.bos_token!r} twice")]
    if tokenizer(own.text(CHAT[:2]))["input_ids"][:2] == [bos, bos]:
        return [finding("bos-doubled", f"tokenizer(rendered text) begins with {tokenizer.bos_token!r} twice")]
    return []


def _check_date(template: str) -> list[Finding]:
    return [finding("date-in-prompt", "it calls strftime_now")] if "strftime_now" in template else []


def _check_end_of_turn(trained: Renderer, model: PreTrainedModel | None) -> list[Finding]:
    """Is the last answer closed, by a token of its own that is learnt, and at which generate() stops?"""
    tokenizer, rendered = trained.tokenizer, trained.rendered(CHAT)
    closing = find_end_of_turn(tokenizer, rendered, SECOND_ANSWER)
    if not closing.positions:
        return [finding("turn-not-closed", f"the text ends with {rendered.text[-30:]!r}")]
    if rendered.marked and not any(rendered.loss_mask[i] for i in closing.marks or closing.positions):
        return [_not_in_loss(closing, SECOND_ANSWER)]
    if not closing.marks:
        return [
            finding(
                "turn-end-is-text",
                f"{closing.text.strip()!r} closes a turn, {len(closing.positions)} ordinary tokens",
            )
        ]
    said = [rendered.input_ids[i] for i in closing.marks if rendered.loss_mask[i] or not rendered.marked]
    if stop_ids(tokenizer, model) & set(said):
        return []
    end = tokenizer.convert_ids_to_tokens(said[0])
    return [finding("turn-end-is-not-eos", f"{end!r} closes a turn and EOS is {tokenizer.eos_token!r}")]


def _check_loss_mask(own: Renderer, trained: Renderer) -> list[Finding]:
    whole = trained.rendered(CHAT)
    learnt = whole.learnt_text
    if lost := [answer for answer in (ANSWER, SECOND_ANSWER) if answer not in learnt]:
        return [finding("answer-not-in-loss", f"{lost[0]!r} is not in what is learnt, {learnt[:60]!r}")]
    found = []
    if wrong := [question for question in (QUESTION, SECOND_QUESTION) if question in learnt]:
        found.append(finding("prompt-in-loss", f"{wrong[0]!r} is in what is learnt"))
    # The last turn may be closed in another way than those before it.
    closing = find_end_of_turn(own.tokenizer, whole, ANSWER, until=SECOND_QUESTION)
    if closing.marks and not any(whole.loss_mask[i] for i in closing.marks):
        found.append(_not_in_loss(closing, ANSWER))
    prompt = own.text(CHAT[:1], add_generation_prompt=True)
    gap = whole.text[len(prompt) : whole.spans[whole.loss_mask.index(True)][0]]
    if whole.text.startswith(prompt) and gap:
        found.append(finding("gap-before-answer", f"{gap!r} stands between prompt and loss mask"))
    return found


def _not_in_loss(closing: EndOfTurn, answer: str) -> Finding:
    return finding("stop-not-in-loss", f"{closing.text.strip()[:30]!r} after {answer!r} is outside the loss mask")


def _check_round_trip(trained: Renderer) -> list[Finding]:
    text = trained.text(CHAT)
    back = trained.tokenizer.decode(trained.tokens(CHAT), clean_up_tokenization_spaces=False)
    if back == text:
        return []
    same = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), len(back))
    here = slice(max(0, same - 10), same + 20)
    return [finding("round-trip-lossy", f"{text[here]!r} comes back as {back[here]!r}")]
