"""Checkers of notebook 16: right, untouched, and each usual mistake with the hint meant for it."""

import pytest

from ftcourse.exercises.fsdp_fine_tune import check_global_loss, check_shard_rows


def up(rows, n):
    block = -(-rows // n)
    return [min(block, max(0, rows - r * block)) for r in range(n)]


RIGHT = {check_shard_rows: up, check_global_loss: lambda sums, tokens: sum(sums) / sum(tokens)}
WRONG = [
    (check_shard_rows, "a number for each rank", lambda rows, n: [x for x in up(rows, n) if x]),
    (check_shard_rows, "use //", lambda rows, n: [rows / n] * n),
    (check_shard_rows, "lie nowhere", lambda rows, n: [rows // n] * n),
    (check_shard_rows, "take only what is left", lambda rows, n: [-(-rows // n)] * n),
    (check_shard_rows, "not evened out", lambda rows, n: [rows // n + (r < rows % n) for r in range(n)]),
    (
        check_shard_rows,
        "where nothing is left",
        lambda rows, n: [min(-(-rows // n), rows - r * -(-rows // n)) for r in range(n)],
    ),
    (check_shard_rows, "filled first", lambda rows, n: up(rows, n)[::-1]),
    (check_global_loss, "mean of the ranks' means", lambda s, t: (s[0] / t[0] + s[1] / t[1]) / 2),
    (check_global_loss, "mean of the ranks' means", lambda s, t: (s[0] / t[0] + s[1] / t[1]) / 3),
    (check_global_loss, "tokens of all ranks", lambda s, t: sum(s)),
    (check_global_loss, "not of ranks", lambda s, t: sum(s) / len(s)),
    (check_global_loss, "do not add means", lambda s, t: s[0] / t[0] + s[1] / t[1]),
    (
        check_global_loss,
        "add up first, then divide once",
        lambda s, t: sum(a / b for a, b in zip(s, t, strict=True)),
    ),
    (check_global_loss, "2.67 is expected", lambda s, t: 9.0),
]


@pytest.mark.parametrize("check", RIGHT)
def test_right_and_untouched(check):
    assert check(RIGHT[check]).right
    for stub in (lambda *args: ..., lambda *args: None):
        verdict = check(stub)
        assert not verdict.right and verdict.not_attempted


@pytest.mark.parametrize(("check", "hint", "answer"), WRONG)
def test_each_mistake_gets_its_hint(check, hint, answer):
    verdict = check(answer)
    assert not verdict.right and not verdict.not_attempted and hint in verdict.message
