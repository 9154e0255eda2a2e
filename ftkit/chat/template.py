"""Does the chat template write what the model should read, and let it learn what it should say?"""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .boundaries import check_boundaries, check_history, check_tool_turns
from .closing import (
    ANSWER,
    CHAT,
    QUESTION,
    SECOND_ANSWER,
    SECOND_QUESTION,
    Closing,
    find_closing,
    stop_ids,
)
from .findings import Finding, codes, finding
from .render import Renderer, TemplateFailed, find_training_template, own_template

SYSTEM = "Answer like a pirate."
SPACED = f"\n\n\n\n\n  {ANSWER}  \n"  # code is indented, and lists end with a line break


def check_chat_template(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
) -> list[Finding]:
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
        found += _check_closing(trained, model)
        if training:
            found += [f for f in _check_loss_mask(own, trained) if f.code not in codes(found)]
        found += check_boundaries(own, trained, CHAT) + check_history(trained) + _check_round_trip(trained)
    except TemplateFailed as error:
        found.append(finding("template-fails", f"with two questions and answers: {error}"))
    if not own.blocks:
        found += check_tool_turns(tokenizer)
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


def _check_closing(trained: Renderer, model: PreTrainedModel | None) -> list[Finding]:
    """Is the last answer closed, by a token of its own that is learnt, and at which generate() stops?"""
    tokenizer, rendered = trained.tokenizer, trained.rendered(CHAT)
    closing = find_closing(tokenizer, rendered, SECOND_ANSWER)
    if not closing.positions:
        return [finding("turn-not-closed", f"the text ends with {rendered.text[-30:]!r}")]
    if rendered.marked and not any(rendered.loss_mask[i] for i in closing.marks or closing.positions):
        return [_not_learnt(closing, SECOND_ANSWER)]
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
    closing = find_closing(own.tokenizer, whole, ANSWER, until=SECOND_QUESTION)
    if closing.marks and not any(whole.loss_mask[i] for i in closing.marks):
        found.append(_not_learnt(closing, ANSWER))
    prompt = own.text(CHAT[:1], add_generation_prompt=True)
    gap = whole.text[len(prompt) : whole.spans[whole.loss_mask.index(True)][0]]
    if whole.text.startswith(prompt) and gap:
        found.append(finding("gap-before-answer", f"{gap!r} stands between prompt and loss mask"))
    return found


def _not_learnt(closing: Closing, answer: str) -> Finding:
    return finding(
        "stop-not-in-loss", f"{closing.text.strip()[:30]!r} after {answer!r} is outside the loss mask"
    )


def _check_round_trip(trained: Renderer) -> list[Finding]:
    text = trained.text(CHAT)
    back = trained.tokenizer.decode(trained.tokens(CHAT), clean_up_tokenization_spaces=False)
    if back == text:
        return []
    same = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), len(back))
    here = slice(max(0, same - 10), same + 20)
    return [finding("round-trip-lossy", f"{text[here]!r} comes back as {back[here]!r}")]
