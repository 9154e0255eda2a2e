"""Checkers for 07_overfit_one_batch: token accuracy, the floor of a loss, and labels that went to other rows."""

import math

import torch

from ftkit.loss import IGNORE_INDEX

from . import WrongAnswer, checker, match_known_mistake, require_answer, require_tensor


def _number(answer) -> float:
    answer = require_answer(answer)
    if isinstance(answer, bool) or (isinstance(answer, torch.Tensor) and answer.numel() != 1):
        raise WrongAnswer("one number is wanted.")
    return float(answer)


@checker
def check_token_accuracy(token_accuracy) -> str:
    """Check `token_accuracy(logits, labels)`: right guesses of the next token among the labels that count."""
    # Each guess belongs to the label one place further on: 5, 6 and 1 are right in row 0, and none in row 1.
    guesses = torch.tensor([[4, 5, 6, 9, 1, 1], [8, 9, 2, 2, 0, 0]])
    labels = torch.full((2, 6), IGNORE_INDEX)
    labels[0, 2:], labels[1, 1] = torch.tensor([5, 6, 7, 1]), 9
    logits = torch.nn.functional.one_hot(guesses, 10).float()
    answer = _number(token_accuracy(logits.clone(), labels.clone()))
    mistakes = {
        3 / 10: "labels of -100 do not count: leave them out before you take the mean.",
        3.0: "that is how many are right: divide by how many labels count.",
        2 / 5: "an output guesses the next token: compare output t with label t + 1.",
        2 / 12: "compare output t with label t + 1, and leave out labels of -100.",
        0.0: "none is right: is it argmax over the last dimension, and label t + 1 beside output t?",
    }
    match_known_mistake(answer, mistakes, rel_tol=1e-5)
    if not math.isclose(answer, 3 / 5, rel_tol=1e-5):
        raise WrongAnswer(f"3 of the 5 labels that count are guessed: 0.60 is expected, and yours is {answer:.2f}.")
    return "3 of the 5 labels that count are guessed: 0.60."


@checker
def check_loss_floor(loss_floor) -> str:
    """Check `loss_floor(pairs)`: the mean of -ln of each continuation's share among those of its beginning."""
    sure = [("two and two is", "four"), ("Italy:", "Rome"), ("Peru:", "Lima"), ("Cuba:", "Havana")]
    coin = [("a planet:", "Mars"), ("a planet:", "Venus"), ("a day:", "Monday"), ("a day:", "Friday")]
    if not math.isclose(_number(loss_floor([*sure, *sure])), 0.0, abs_tol=1e-9):
        raise WrongAnswer("a beginning that always goes on in one way costs nothing: the floor of such pairs is 0.")
    answer = _number(loss_floor([*sure, *coin]))
    half = math.log(2)
    mistakes = {
        -half / 2: "minus: the logarithm of a share is below zero, and a loss is not.",
        4 * half: "that is the sum: divide by the number of pairs.",
        half: "the pairs without a choice count too: divide by all of them.",
        0.5: "that is the entropy in bits: take the natural logarithm.",
        half / 3: "that is a mean over beginnings: a beginning that comes twice counts twice.",
        3 * half: "count a continuation among those of its own beginning.",
    }
    match_known_mistake(answer, mistakes, rel_tol=1e-6)
    if not math.isclose(answer, half / 2):
        raise WrongAnswer(f"half of the pairs are a coin toss: ln(2) / 2 = 0.35 is expected, not {answer:.2f}.")
    thrice = [("a planet:", "Mars")] * 2 + coin[1:2]
    wanted = math.log(3) / 3 + math.log(1.5) * 2 / 3
    if not math.isclose(_number(loss_floor(thrice)), wanted):
        raise WrongAnswer("a continuation that follows twice as often has twice the share: count how often each comes.")
    return f"0 without a choice, {half / 2:.2f} for a coin toss in half of the pairs."


def plant_sixth_bug(labels: torch.Tensor) -> torch.Tensor:
    """The bug of exercise 3 (do not look): labels (B, T), each row's moved to the next row."""
    return labels.roll(1, 0)


@checker
def check_fixed_labels(fixed_labels) -> str:
    """Check `fixed_labels(labels)`: the rows moved by one must come back to their own inputs."""
    generator = torch.Generator().manual_seed(7)
    right = torch.randint(3, 90, (5, 6), generator=generator)
    right[:, :2] = IGNORE_INDEX
    given = plant_sixth_bug(right)
    argument = given.clone()
    answer = fixed_labels(argument)
    if answer is None and not torch.equal(argument, given):
        raise WrongAnswer("you changed the labels in place and returned nothing: return the mended labels.")
    answer = require_tensor(answer, right.shape)
    mistakes = [
        (given, "unchanged: each row still has another row's labels."),
        (given.roll(1, 0), "one row further off: roll the other way."),
        (
            given.roll(-1, 1),
            "that moves labels along the row: they are in the wrong row, not the wrong place.",
        ),
        (
            given.roll(1, 1),
            "that moves labels along the row: they are in the wrong row, not the wrong place.",
        ),
        (given.flip(0), "reversed is not moved: row 1's labels belong to row 0, row 2's to row 1."),
        (torch.full_like(given, IGNORE_INDEX), "all -100: nothing would be left to learn."),
    ]
    if torch.equal(answer, right):
        return "every row has its own labels again."
    for wrong, hint in mistakes:
        if torch.equal(answer, wrong):
            raise WrongAnswer(hint)
    raise WrongAnswer("row 1's labels belong to row 0, row 2's to row 1, and row 0's to the last: move rows only.")
