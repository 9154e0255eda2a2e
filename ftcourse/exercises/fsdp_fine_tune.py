"""Checkers for 16_fsdp_fine_tune: which rows lie where, and the loss of a global batch."""

import math

from . import WrongAnswer, checker, match_known_mistake, require_answer


@checker
def check_shard_rows(shard_rows) -> str:
    """Check `shard_rows(rows, world_size)`: how many rows each rank holds, cut as torch.chunk cuts."""
    import torch

    for rows, world_size in ((8, 2), (1024, 4), (10, 4), (5, 4), (3, 8)):
        sizes = require_answer(shard_rows(rows, world_size))
        blocks = torch.arange(rows).chunk(world_size)
        expected = [len(block) for block in blocks] + [0] * (world_size - len(blocks))
        sizes = list(sizes)
        where = f"{rows} rows on {world_size} ranks"
        if len(sizes) != world_size:
            raise WrongAnswer(f"{where}: there should be a number for each rank, and you return {len(sizes)}.")
        if any(not isinstance(size, int) for size in sizes):
            raise WrongAnswer(f"{where}: a rank holds whole rows: use //, not /.")
        if min(sizes) < 0:
            raise WrongAnswer(f"{where}: a rank holds {min(sizes)} rows: where nothing is left, it holds 0.")
        if sum(sizes) < rows:
            raise WrongAnswer(f"{where}: {rows - sum(sizes)} rows lie nowhere: round the block up, not down.")
        if sum(sizes) > rows:
            raise WrongAnswer(f"{where}: {sum(sizes)} rows are held: the last ranks take only what is left.")
        if sizes != expected and sorted(sizes) != sorted(expected):
            raise WrongAnswer(f"{where}: blocks are rounded up, not evened out; expected {expected}, got {sizes}.")
        if sizes != expected:
            raise WrongAnswer(f"{where}: the first ranks are filled first: {expected}.")
    return "equal blocks from the top, and the last ranks take what is left, even nothing."


@checker
def check_global_loss(global_loss) -> str:
    """Check `global_loss(sums, tokens)`: from each rank's summed loss and unmasked tokens."""
    sums, tokens = [30.0, 2.0, 0.0], [10, 2, 0]
    try:
        value = float(require_answer(global_loss(list(sums), list(tokens))))
    except ZeroDivisionError:
        raise WrongAnswer(
            "a rank may have no tokens: do not divide on each rank; add up first, then divide once."
        ) from None
    wrong = {
        (3.0 + 1.0) / 2: "that is a mean of the ranks' means: a rank with few tokens would weigh too much.",
        (3.0 + 1.0) / 3: "that is a mean of the ranks' means: a rank with few tokens would weigh too much.",
        32.0: "that is the sum over ranks: divide by the tokens of all ranks.",
        32.0 / 3: "divide by the number of tokens, not of ranks.",
        4.0: "do not add means: add the sums, add the tokens, then divide.",
    }
    match_known_mistake(value, wrong)
    if not math.isclose(value, 32 / 12):
        raise WrongAnswer(f"(30 + 2 + 0) / (10 + 2 + 0) = 2.67 is expected, and yours is {value:.2f}.")
    return "2.67: add the sums, add the tokens, divide once. A rank without tokens does no harm."
