"""Checkers of notebook 08: right, untouched, and each usual mistake with the hint meant for it."""

import pytest

from ftcourse.exercises.full_fine_tune import IGNORE_INDEX, check_build_labels, check_mean_loss, check_stop_rate


def labels(ids, mask):
    return [i if m else IGNORE_INDEX for i, m in zip(ids, mask, strict=True)]


def means(losses, rows):
    kept = [[x for x, y in zip(a, b, strict=True) if y != IGNORE_INDEX] for a, b in zip(losses, rows, strict=True)]
    return kept, [sum(row) / len(row) for row in kept]


def by_token(ids, mask):
    answer = {i for i, m in zip(ids, mask, strict=True) if m}
    return [i if i in answer else IGNORE_INDEX for i in ids]


def last_token_only(outputs, stops):
    return sum(bool(stops & set(output[-1:])) for output in outputs) / len(outputs)


RIGHT = {
    check_build_labels: labels,
    check_stop_rate: lambda outputs, stops: sum(bool(stops & set(o)) for o in outputs) / len(outputs),
    check_mean_loss: lambda losses, rows: sum(map(sum, means(losses, rows)[0])) / sum(map(len, means(losses, rows)[0])),
}
WRONG = [
    (check_build_labels, "every token is learnt from", lambda ids, mask: ids[:]),
    (check_build_labels, "0 is a token", lambda ids, mask: [i * m for i, m in zip(ids, mask, strict=True)]),
    (check_build_labels, "upside down", lambda ids, mask: labels(ids, [1 - m for m in mask])),
    (check_build_labels, "do not shift", lambda ids, mask: [*labels(ids, mask)[1:], IGNORE_INDEX]),
    (check_build_labels, "never learn to stop", lambda ids, mask: labels(ids, [*mask[:8], 0, *mask[9:]])),
    (check_build_labels, "a label for each", lambda ids, mask: [i for i, m in zip(ids, mask, strict=True) if m]),
    (check_build_labels, "not by the token", by_token),
    (check_build_labels, "changes input_ids", lambda ids, mask: ids.clear() or []),
    (check_stop_rate, "how many stopped", lambda outputs, stops: sum(bool(stops & set(o)) for o in outputs)),
    (check_stop_rate, "last token only", last_token_only),
    (check_stop_rate, "empty output", lambda outputs, stops: sum(bool(stops & set(o)) for o in outputs) / 4),
    (check_stop_rate, "several stop tokens", lambda outputs, stops: sum(2 in o for o in outputs) / 5),
    (check_stop_rate, "from 0 to 1 is wanted", lambda outputs, stops: True),
    (check_stop_rate, "yours is 0.99", lambda outputs, stops: 0.99),
    (check_mean_loss, "loss mask is not used", lambda losses, rows: sum(map(sum, losses)) / 8),
    (check_mean_loss, "mean of row means", lambda losses, rows: sum(means(losses, rows)[1]) / 2),
    (check_mean_loss, "not of all tokens", lambda losses, rows: sum(map(sum, means(losses, rows)[0])) / 8),
    (check_mean_loss, "that is the sum:", lambda losses, rows: sum(map(sum, means(losses, rows)[0]))),
    (check_mean_loss, "sum over the rows", lambda losses, rows: sum(map(sum, means(losses, rows)[0])) / 2),
    (check_mean_loss, "12.25 is expected", lambda losses, rows: 7.0),
]  # fmt: skip


@pytest.mark.parametrize("check", RIGHT)
def test_right_and_untouched(check):
    assert check(RIGHT[check]).right
    for stub in (lambda *args: ..., lambda *args: None):
        verdict = check(stub)
        assert not verdict.right and verdict.not_attempted


@pytest.mark.parametrize(("check", "hint", "answer"), WRONG, ids=[hint for _, hint, _ in WRONG])
def test_each_mistake_gets_its_hint(check, hint, answer):
    verdict = check(answer)
    assert not verdict.right and not verdict.not_attempted and hint in verdict.message
