"""The checkers of notebook 06: a solution is right, a stub "Not solved yet", a mistake gets the hint meant for it."""

import math

from torch.nn.functional import cross_entropy

from ftcourse.exercises.optimizer_and_schedule import check_accumulate, check_sweep

from .shown import checker_tests


def sweep(validation_loss, learning_rates, step=3.0, both_ways=True, grow=None):
    losses = {lr: validation_loss(lr) for lr in learning_rates}
    while True:
        rates = sorted(losses)
        best = min(losses, key=lambda lr: losses[lr] if math.isfinite(losses[lr]) else math.inf)
        if best == rates[-1] or grow == "up":
            new = rates[-1] * step
        elif best == rates[0] and both_ways:
            new = rates[0] / step
        else:
            return losses
        losses[new] = validation_loss(new)


def twice(validation_loss, learning_rates):
    losses = sweep(validation_loss, learning_rates)
    return {lr: validation_loss(lr) for lr in losses}


def generous(validation_loss, learning_rates):
    return sweep(validation_loss, [*learning_rates, learning_rates[-1] * 3])


def summed(model, batch, shift=1):
    logits, labels = model(batch["input_ids"]), batch["labels"]
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")


def count(batch):
    return (batch["labels"][:, 1:] != -100).sum()


def accumulate(divisor, shift=1, zero=False):
    """Backward of each micro-batch's summed loss over `divisor(batch, batches)`."""

    def run(model, batches):
        for batch in batches:
            if zero:
                model.zero_grad()
            (summed(model, batch, shift) / divisor(batch, batches)).backward()

    return run


def total(batch, batches):
    return sum(map(count, batches))


EXERCISES = [
    (
        check_sweep,
        sweep,
        {
            "no others": lambda measure, rates: {lr: measure(lr) for lr in rates},
            "and no end": lambda measure, rates: sweep(measure, rates, grow="up"),
            "more than a factor of 3 apart": lambda measure, rates: sweep(measure, rates, step=10),
            "trained twice": twice,
            "not needed": generous,
            "was asked for and not tried": lambda measure, rates: sweep(measure, rates[:1]),
            "each learning rate that was tried": lambda measure, rates: dict(list(sweep(measure, rates).items())[1:]),
            "a dict of losses": lambda measure, rates: min(sweep(measure, rates)),
            "is at the lower edge": lambda measure, rates: sweep(measure, rates, both_ways=False),
        },
    ),
    (
        check_accumulate,
        accumulate(total),
        {
            "the sum over 14 labels": accumulate(lambda batch, batches: 1),
            "sum-for-mean": accumulate(lambda batch, batches: count(batch)),
            "the mean of the micro-batches' means": accumulate(lambda batch, batches: 3 * count(batch)),
            "number of examples": accumulate(lambda batch, batches: 6),
            "masked ones included": accumulate(lambda batch, batches: 36),
            "do not zero": accumulate(total, zero=True),
            "labels[:, t + 1]": accumulate(lambda b, bs: sum((b["labels"] != -100).sum() for b in bs), shift=0),
            "2.00 times as long": accumulate(lambda batch, batches: total(batch, batches) / 2),
            "no gradient": lambda model, batches: 1.0,
        },
    ),
]

test_solution, test_stub, test_wrong_answer = checker_tests(EXERCISES)


def test_a_sweep_on_a_model_is_judged_by_its_own_losses():
    def valley(lr):
        return abs(math.log(lr / 2e-3))

    verdict = check_sweep(sweep, valley)
    assert verdict.right and "7 learning rates were needed" not in verdict.message
    assert "times as high" in verdict.message

    def lying(validation_loss, learning_rates):
        losses = sweep(validation_loss, learning_rates)
        return losses if len(losses) < 6 else {lr: loss for lr, loss in losses.items() if lr < 1e-3}

    assert not check_sweep(lying, valley).right
