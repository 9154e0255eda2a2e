"""Checkers for 08_full_fine_tune: a diagnosis of labels, the verdict of an experiment, a judge that has no side."""

import random
from collections.abc import Sequence

from ftcourse.evaluation import compare_exact
from ftkit.loss import IGNORE_INDEX

from . import NotAttempted, WrongAnswer, checker, require_answer

USER, ASSISTANT, END = 4, 5, 6
DIAGNOSES = ("healthy", "truncated", "end masked", "question in the loss")


def faulty_example(fault: str, question: Sequence[int], answer: Sequence[int]) -> tuple[list[int], list[int]]:
    """`input_ids` and `labels` of one question and one answer, with one of the faults in DIAGNOSES."""
    prompt = [0, USER, *question, END, ASSISTANT]
    ids = [*prompt, *answer, END]
    labels = [IGNORE_INDEX] * len(prompt) + [*answer, END]
    if fault == "truncated":  # the template's end is cut off
        ids, labels = ids[:-2], labels[:-2]
    elif fault == "end masked":
        labels[-1] = IGNORE_INDEX
    elif fault == "question in the loss":
        labels[1 : len(prompt)] = ids[1 : len(prompt)]
    return ids, labels


@checker
def check_diagnose(diagnose) -> str:
    """Check `diagnose(input_ids, labels, end, assistant)`: one of DIAGNOSES."""
    rng = random.Random(0)
    for attempt in range(24):
        fault = DIAGNOSES[attempt % 4]
        question, answer = ([rng.randrange(20, 90) for _ in range(rng.randrange(2, 9))] for _ in range(2))
        ids, labels = faulty_example(fault, question, answer)
        said = require_answer(diagnose(list(ids), list(labels), END, ASSISTANT))
        if said not in DIAGNOSES:
            raise WrongAnswer(f"you return {said!r}: return one of {', '.join(DIAGNOSES)}.")
        if said == fault:
            continue
        if fault == "truncated" and said == "end masked":
            raise WrongAnswer("a truncated conversation has no end token at all: look at input_ids before the labels.")
        if fault == "end masked" and said == "healthy":
            raise WrongAnswer("the end token is there, but its label is masked: the model would never learn to stop.")
        if fault == "healthy" and said == "question in the loss":
            raise WrongAnswer("unmasked labels after the assistant token are the answer: look at those before it.")
        raise WrongAnswer(f"this one is {fault!r}, and you say {said!r}: input_ids {ids}, labels {labels}.")
    return "24 of 24: a look at one example like this costs nothing, and a run does not show the fault in its loss."


@checker
def check_experiment(outcome, full: Sequence[str], references: Sequence[str]) -> str:
    """Check (LoRA's answers, verdict): the verdict has to follow from a comparison with the answers of `full`."""
    outcome = require_answer(outcome)
    if not (isinstance(outcome, tuple) and len(outcome) == 2):
        raise WrongAnswer("return two things: the list of LoRA's answers, and your verdict.")
    answers, verdict = outcome
    if answers is ... or answers is None or verdict is ... or verdict is None:
        raise NotAttempted
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise WrongAnswer("the answers should be a list of texts: take `.text` of each.")
    if len(answers) != len(references):
        raise WrongAnswer(f"there are {len(references)} questions, and you have {len(answers)} answers.")
    if answers == list(full):
        raise WrongAnswer("these are the answers of the fully tuned model: ask the model that your function trained.")
    allowed = {"first": "full", "second": "LoRA", "cannot tell": "cannot tell"}
    if verdict not in allowed.values():
        raise WrongAnswer(f"the verdict is {verdict!r}: give one of {', '.join(allowed.values())}.")
    found = compare_exact(full, answers, references)
    low, high = found.interval
    span = f"full wins {found.wins} and loses {found.losses}, so its share is {low:.0%} to {high:.0%}"
    if verdict != allowed[found.verdict]:
        if found.verdict == "cannot tell":
            raise WrongAnswer(f"{span}: an interval with one half inside does not tell which is better.")
        raise WrongAnswer(f"{span}: that does tell which is better.")
    return f"{span}, and your verdict follows from it."


@checker
def check_judge(judge) -> str:
    """Check `judge(left, right, expected)`: "left", "right" or "tie", whatever side an answer stands on."""
    expected = "Paris is the capital of France."
    good, cased = expected, " paris is the capital of france "
    wrong, longer = "Lyon is the capital of France.", "Rome, as far as I know, is the capital of the whole of France."
    pairs = [(good, wrong, "left"), (cased, wrong, "left"), (good, longer, "left"), (wrong, longer, "tie")]
    pairs += [(good, cased, "tie"), (good, good, "tie"), (wrong, "", "tie"), (good, "", "left")]
    for one, other, verdict in pairs:
        mirrored = {"left": "right", "right": "left", "tie": "tie"}
        said = require_answer(judge(one, other, expected))
        if said not in mirrored:
            raise WrongAnswer(f'you return {said!r}: return "left", "right" or "tie".')
        back = require_answer(judge(other, one, expected))
        if back != mirrored[said]:
            raise WrongAnswer(f"{one!r} against {other!r} is {said!r}, and with the sides swapped {back!r}: a bias.")
        if verdict == "tie" and cased in (one, other) and said != "tie":
            raise WrongAnswer("case, outer spaces and the full stop should not decide: compare normalised texts.")
        if verdict == "tie" and longer in (one, other) and said != "tie":
            raise WrongAnswer("two wrong answers tie, however long they are.")
        if said != verdict:
            raise WrongAnswer(f"{one!r} against {other!r} should be {verdict!r}, and you say {said!r}.")
    return "the same verdict from both sides, and length does not count."
