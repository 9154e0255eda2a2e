"""Checkers for 05_chat_templates: generation markers, examples that never learn to stop, and a mismatched prompt."""

import torch
from jinja2 import TemplateError

from ftkit.loss import IGNORE_INDEX

from . import WrongAnswer, checker, require_answer

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How does a cow sound?"},
    {"role": "assistant", "content": "A cow moos."},
    {"role": "user", "content": "And a cat?"},
    {"role": "assistant", "content": "It meows."},
]


@checker
def check_marked_template(marked_template) -> str:
    """Check `marked_template()`: pocket-base's turns, with the answers and their `<|end|>` marked, and nothing else."""
    template = require_answer(marked_template())
    if not isinstance(template, str):
        raise WrongAnswer(f"a template is a string, and your code returns a {type(template).__name__}.")
    from ftkit.models import load_base

    tokenizer = load_base()[1]
    # The reference, turn by turn: special tokens keep their neighbours from merging.
    end, wanted, answers = tokenizer.convert_tokens_to_ids("<|end|>"), [tokenizer.bos_token_id], [False]
    texts, ends, headers = [False], [False], [False]
    for turn in TURNS:
        said = tokenizer.encode(turn["content"], add_special_tokens=False)
        wanted += [tokenizer.convert_tokens_to_ids(f"<|{turn['role']}|>"), *said, end]
        own = turn["role"] == "assistant"
        headers += [own] + [False] * (len(said) + 1)
        texts += [False] + [own] * len(said) + [False]
        ends += [False] * (len(said) + 1) + [own]
    answers = [a or b for a, b in zip(texts, ends, strict=True)]
    try:
        encoded = tokenizer.apply_chat_template(
            TURNS, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
        prompt = tokenizer.apply_chat_template(
            TURNS[:2], chat_template=template, add_generation_prompt=True, tokenize=False
        )
    except TemplateError as error:
        raise WrongAnswer(f"Jinja cannot read it: {error}") from error
    if encoded["input_ids"] != wanted:
        raise WrongAnswer(
            "it writes other tokens than before: the markers add no text, so leave everything else as it is."
        )
    if not prompt.endswith("<|end|><|assistant|>"):
        raise WrongAnswer("the generation prompt is gone: keep the last {% if %}.")
    loss_mask = [bool(kept) for kept in encoded["assistant_masks"]]
    mistakes = [
        ([False] * len(wanted), "nothing is marked: where are {% generation %} and {% endgeneration %}?"),
        (
            texts,
            "<|end|> is outside: the model would never learn to stop. Put {% endgeneration %} behind it.",
        ),
        (ends, "only <|end|> is marked: the answer before it should be in the loss, too."),
        (
            [a or b for a, b in zip(answers, headers, strict=True)],
            "<|assistant|> is marked: the prompt gives it, so the model never has to say it.",
        ),
    ]
    if loss_mask == answers:
        return f"{sum(answers)} of {len(wanted)} tokens are in the loss: two answers, each with its <|end|>."
    for wrong, hint in mistakes:
        if loss_mask == wrong:
            raise WrongAnswer(hint)
    if any(kept and not own for kept, own in zip(loss_mask, answers, strict=True)):
        raise WrongAnswer("other turns are marked as well: keep the markers inside the assistant's branch.")
    raise WrongAnswer("part of an answer is missing: the markers go around its text and its <|end|>, in each turn.")


@checker
def check_costly_changes(costly_changes, ask) -> str:
    """Check `costly_changes(ask)`: the changes of a prompt that alone lose more than half of the exact answers.

    `ask(change)` returns the number of exact answers with a change of CHANGES, or with None as trained.
    """
    # Two services that nobody has, whose faults are others than those of the real one.
    for tables in (
        {None: 20, "BOS twice": 9, "lower case": 11, "a system text first": 18},
        {None: 6, "a space at its end": 2, "BOS twice": 3},
    ):
        expected = {change for change, right in tables.items() if change and right < tables[None] / 2}
        everything = {change: tables.get(change, tables[None]) for change in (None, *CHANGES)}
        found = _changes(costly_changes(everything.__getitem__))
        if found != expected:
            raise WrongAnswer(_why_wrong(found, everything, expected))
    measured = {change: ask(change) for change in (None, *CHANGES)}
    found = _changes(costly_changes(ask))
    expected = {change for change in CHANGES if measured[change] < measured[None] / 2}
    if found != expected:
        raise WrongAnswer(_why_wrong(found, measured, expected))
    costs, others = (
        ", ".join(f"{change} {measured[change]}" for change in CHANGES if (change in expected) == costly)
        for costly in (True, False)
    )
    why = "After that space the model cannot begin as it was trained to, with a token that holds space and word."
    reason = f" {why}" if "a space at its end" in expected else ""
    return f"as trained {measured[None]} exact answers; {costs}. The others: {others}.{reason}"


CHANGES = {  # of a prompt's text, without BOS, which the tokenizer adds
    "BOS twice": lambda prompt: "<s>" + prompt,
    "no generation prompt": lambda prompt: prompt.removesuffix("<|assistant|>"),
    "a space at its end": lambda prompt: prompt + " ",
    "a system text first": lambda prompt: "Answer in one line.\n" + prompt,
    "lower case": str.lower,
}


def _changes(answer) -> set[str]:
    answer = require_answer(answer)
    if not isinstance(answer, list | tuple | set) or not set(answer) <= set(CHANGES):
        raise WrongAnswer("a list of names out of CHANGES is expected.")
    return set(answer)


def _why_wrong(found: set[str], right: dict, expected: set[str]) -> str:
    table = ", ".join(f"{change or 'as trained'} {count}" for change, count in right.items())
    if found == {change for change in CHANGES if right[change] < right[None]}:
        return f"those lose any answer at all; more than half of them was asked for. ({table})"
    if found == set(CHANGES) - expected:
        return f"the other way round: those keep at least half. ({table})"
    if found == {change for change in CHANGES if right[change] < 16}:
        return f"half of those as trained, `ask(None)`, not half of the questions. ({table})"
    return f"with these counts it should be {sorted(expected)}, and yours is {sorted(found)}. ({table})"


@checker
def check_never_stop(never_stop) -> str:
    """Check `never_stop(labels, stop_ids)`: examples whose last unmasked label is no stop token."""
    skip, stop, other_stop = IGNORE_INDEX, 2, 9
    labels = torch.tensor(
        [
            [skip, skip, 5, 6, stop, skip, skip],  # learns to stop, and is padded
            [skip, skip, 5, 6, skip, skip, skip],  # its end is masked
            [skip, 5, stop, skip, skip, 7, 8],  # the second answer is cut off
            [skip, skip, skip, skip, skip, 7, other_stop],  # another stop token
            [skip] * 7,  # nothing to learn
            [skip, 5, stop, skip, 6, 7, stop],
        ]
    )
    answer = require_answer(never_stop(labels.clone(), {stop, other_stop}))
    if isinstance(answer, torch.Tensor):
        answer = answer.tolist()
    if not isinstance(answer, list | tuple | set):
        raise WrongAnswer("a list of row numbers is expected, counted from 0.")
    mistakes = {
        (0, 3, 5): "those are the examples that do learn to stop.",
        (
            1,
            4,
        ): "a stop token after the first answer does not end the second: look at the last unmasked label.",
        (1, 2): "an example without any label does not learn its end either: it belongs to the list.",
        (0, 1, 2, 4): "the last place may be padding: look at the last label that is not -100.",
        (1, 2, 3, 4): "there may be several stop tokens: ask whether the label is in `stop_ids`.",
        (2, 3, 5): "count from 0.",
    }
    found = tuple(sorted(int(row) for row in answer))
    if found == (1, 2, 4):
        return "rows 1, 2 and 4: a masked end, an answer cut off, and nothing to learn."
    raise WrongAnswer(mistakes.get(found, f"rows 1, 2 and 4 never learn to stop; yours are {list(found)}."))
