"""Checkers for 12_memory: bytes that training keeps, what a rank of FSDP holds, and the largest micro-batch."""

import math

from . import WrongAnswer, checker, match_known_mistake, require_answer


@checker
def check_kept_bytes(kept_bytes) -> str:
    """Check `kept_bytes(trained, frozen)`: weights, gradients and AdamW's moments, all in float32."""
    trained, frozen = 1_000, 300
    value = float(require_answer(kept_bytes(trained, frozen)))
    wrong = {
        16 * trained + 16 * frozen: "a frozen weight has no gradient and no moments.",
        16 * trained: "a frozen weight is still a weight: 4 bytes.",
        12 * trained + 4 * frozen: "AdamW keeps two moments for each trained weight.",
        4 * trained + 4 * frozen: "that is the weights alone.",
        4 * trained + frozen: "these are numbers, not bytes: a float32 number takes 4.",
        8 * trained + 4 * frozen: "gradients or moments are missing: 16 bytes for each trained weight.",
    }
    match_known_mistake(value, wrong)
    if not math.isclose(value, 16 * trained + 4 * frozen):
        raise WrongAnswer(f"1,000 trained and 300 frozen weights keep 17,200 bytes, and yours is {value:,.0f}.")
    if kept_bytes(0, 10) != 40:
        raise WrongAnswer("ten frozen weights and nothing that trains keep 40 bytes.")
    return "16 bytes for a trained weight, 4 for a frozen one."


@checker
def check_rank_bytes(rank_bytes) -> str:
    """Check `rank_bytes(layers, ranks)`: the shards of all layers, and two layers gathered in bfloat16."""
    layers, ranks = [1_000, 4_000, 2_000], 4
    value = float(require_answer(rank_bytes(list(layers), ranks)))
    shards, gathered = 16 * sum(layers) / ranks, 2 * 2 * max(layers)
    wrong = {
        shards: "while a layer computes, its weights are whole: two layers are gathered at a time.",
        16 * sum(layers) + gathered: "every rank keeps a slice of weights, gradients and moments: divide by the ranks.",
        shards + 2 * max(layers): "one layer is gathered while another computes: count two.",
        shards + 8 * max(layers): "gathered weights are in bfloat16 here: 2 bytes each.",
        shards + 2 * sum(layers): "not all layers are gathered at once: two of them.",
        shards + gathered / ranks: "what is gathered is whole on every rank: do not divide it.",
        4 * sum(layers) / ranks + gathered: "a trained weight keeps 16 bytes, not 4.",
    }
    match_known_mistake(value, wrong)
    if not math.isclose(value, shards + gathered):
        raise WrongAnswer(f"44,000 bytes are expected, and yours is {value:,.0f}: shards, and the largest layer twice.")
    if not math.isclose(rank_bytes([10, 20], 2), 16 * 30 / 2 + 4 * 20):
        raise WrongAnswer(
            "layers of 10 and 20 on 2 ranks take 320 bytes: a trained weight keeps 16, divided by `ranks`."
        )
    return "44,000 bytes: what is kept shrinks with the ranks, what is gathered does not."


@checker
def check_largest_micro_batch(largest_micro_batch) -> str:
    """Check `largest_micro_batch(peak_of, capacity)`: rows whose peak, linear in rows, fits."""
    for fixed, per_row, capacity in (
        (100, 7, 150),
        (1_000, 64, 2_000),
        (10, 3, 40),
        (50, 10, 55),
        (50, 10, 20),
    ):
        calls = []

        def peak_of(rows: int, fixed=fixed, per_row=per_row, calls=calls) -> int:
            calls.append(rows)
            return fixed + per_row * rows

        value = require_answer(largest_micro_batch(peak_of, capacity))
        right = max(0, (capacity - fixed) // per_row)
        where = f"{fixed} bytes and {per_row} a row in {capacity}"
        if isinstance(value, float) and not value.is_integer():
            raise WrongAnswer(f"{where}: rows are whole: round down.")
        if value > right and value == capacity // per_row:
            raise WrongAnswer(f"{where}: take off what is there without any row first.")
        if value < 0:
            raise WrongAnswer(f"{where}: not even one row fits: return 0.")
        if value == right + 1:
            raise WrongAnswer(f"{where}: {right + 1} rows do not fit: round down.")
        if value != right:
            raise WrongAnswer(f"{where}: {right} rows fit, and you say {value}.")
        if len(calls) > 3:
            raise WrongAnswer(f"you asked for {len(calls)} peaks: the peak is linear in rows, so two are enough.")
    return "two estimates give what is fixed and what a row costs; the rest is a division."
