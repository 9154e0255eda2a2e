"""Checkers for 07_overfit_one_batch: the floor of a loss, and four training runs with unknown bugs."""

import copy
import math
from dataclasses import dataclass

import torch

from ftkit.loss import IGNORE_INDEX
from ftkit.overfit import StartLoss, start_loss

from . import WrongAnswer, checker, match_known_mistake, require_answer, require_filled


def _number(answer) -> float:
    answer = require_answer(answer)
    if isinstance(answer, bool) or (isinstance(answer, torch.Tensor) and answer.numel() != 1):
        raise WrongAnswer("one number is wanted.")
    return float(answer)


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


@dataclass(frozen=True)
class Curve:
    """What a run shows: the loss and token accuracy before each step and after the last, and the loss at the start."""

    losses: list[float]
    accuracies: list[float]
    start: StartLoss


class UnknownRun:
    """A training run with a planted bug; call it with a learning rate and steps to get its `Curve`.

    It trains a copy of the model, so it can be called as often as you like.
    """

    def __init__(self, model, batch: dict[str, torch.Tensor], bug: str):
        self._model, self._batch, self._bug = model, batch, bug

    def __repr__(self) -> str:
        return "UnknownRun: call it with a learning rate"

    def __call__(self, lr: float, steps: int = 40) -> Curve:
        model = copy.deepcopy(self._model).eval()
        batch = {**self._batch, "labels": _labels_of(self._bug, self._batch["labels"])}
        if self._bug == TOO_LITTLE_TRAINS:
            model.requires_grad_(False)
            list(model.parameters())[-2].requires_grad_(True)  # the last norm
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=lr * _FACTORS.get(self._bug, 1), weight_decay=0.0)
        start = start_loss(model, batch)
        losses, accuracies = [], []
        for step in range(steps + 1):
            output = model(**batch)
            labels = batch["labels"][:, 1:]
            right = output.logits[:, :-1].argmax(-1) == labels
            losses.append(output.loss.item())
            accuracies.append(right[labels != IGNORE_INDEX].float().mean().item())
            if step < steps:
                output.loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        return Curve(losses, accuracies, start)


OTHER_ROWS, END_MASKED = "labels of other examples", "end-of-turn token not in the loss"
LR_TOO_HIGH, LR_TOO_LOW = "learning rate too high", "learning rate too low"
TOO_LITTLE_TRAINS = "too little of the model trains"
CAUSES = (OTHER_ROWS, END_MASKED, LR_TOO_HIGH, LR_TOO_LOW, TOO_LITTLE_TRAINS)
_FACTORS = {LR_TOO_HIGH: 100}
_PLANTED = {"A": END_MASKED, "B": TOO_LITTLE_TRAINS, "C": OTHER_ROWS, "D": LR_TOO_HIGH}


def _labels_of(bug: str, labels: torch.Tensor) -> torch.Tensor:
    if bug == OTHER_ROWS:
        return labels.roll(1, 0)
    if bug == END_MASKED:
        after = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        return labels.masked_fill(after == IGNORE_INDEX, IGNORE_INDEX)
    return labels


def plant_unknown_bugs(model, batch: dict[str, torch.Tensor]) -> dict[str, UnknownRun]:
    """Four runs by their letters, each with a bug of its own (do not look: find out by running them)."""
    return {name: UnknownRun(model, batch, bug) for name, bug in _PLANTED.items()}


_EVIDENCE = {
    END_MASKED: "compare its last labels at the start with those of a healthy run (24 nats): is that token among them?",
    TOO_LITTLE_TRAINS: "run it at a tenth and at ten times the rate: does any rate fit the batch?",
    OTHER_ROWS: "compare the loss inside answers with and without their context at its start.",
    LR_TOO_HIGH: "run it at a tenth and at a hundredth of the rate, and watch the end of the curve.",
}


@checker
def check_diagnoses(my_diagnoses) -> str:
    """Check `my_diagnoses()`: the cause of each unknown run, by its letter."""
    answer = require_answer(my_diagnoses())
    if not isinstance(answer, dict):
        raise WrongAnswer("a dictionary is expected: a cause for each letter.")
    for name, cause in _PLANTED.items():
        given = require_filled(answer.get(name))
        if given not in CAUSES:
            raise WrongAnswer(f"run {name}: {given!r} is none of CAUSES.")
        if given != cause:
            raise WrongAnswer(f"run {name} is another case: {_EVIDENCE[cause]}")
    return "four bugs, found from a start, an end and a second learning rate."
