"""Checkers for 08_full_fine_tune: labels with a loss mask, the stop rate, and the loss per unmasked token."""

import math

from ftkit.loss import IGNORE_INDEX

from . import WrongAnswer, checker, match_known_mistake, require_answer


@checker
def check_build_labels(build_labels) -> str:
    """Check `build_labels(input_ids, assistant_mask)`: the ids where the mask is 1, else IGNORE_INDEX."""
    input_ids = [0, 4, 17, 9, 6, 5, 31, 12, 6, 2, 2]
    assistant_mask = [0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0]
    expected = [IGNORE_INDEX] * 6 + [31, 12, 6] + [IGNORE_INDEX] * 2
    given = list(input_ids)
    labels = require_answer(build_labels(given, list(assistant_mask)))
    if given != input_ids:
        raise WrongAnswer("your code changes input_ids: build a new list instead.")
    labels = list(labels)
    if len(labels) != len(input_ids):
        raise WrongAnswer(
            f"there should be a label for each of the {len(input_ids)} tokens, and you return {len(labels)}."
        )
    if labels == input_ids:
        raise WrongAnswer("every token is learnt from, the user's too: use the assistant mask.")
    if labels == [i if m else 0 for i, m in zip(input_ids, assistant_mask, strict=True)]:
        raise WrongAnswer("0 is a token like any other: write IGNORE_INDEX (-100) where nothing is to be learnt.")
    if labels == [IGNORE_INDEX if m else i for i, m in zip(input_ids, assistant_mask, strict=True)]:
        raise WrongAnswer("upside down: the assistant's tokens are the ones to learn.")
    if labels == [*expected[1:], IGNORE_INDEX]:
        raise WrongAnswer("do not shift: the model shifts labels by one itself.")
    if labels[8] == IGNORE_INDEX:
        raise WrongAnswer("the end of turn (token 6 in the answer) is masked: the model would never learn to stop.")
    if labels == [i if i in (31, 12, 6) else IGNORE_INDEX for i in input_ids]:
        raise WrongAnswer("decide by the mask's position, not by the token: token 6 ends the user's turn as well.")
    if labels != expected:
        raise WrongAnswer(f"expected {expected}, got {labels}.")
    return "only the assistant's tokens are learnt from, its end of turn among them."


@checker
def check_stop_rate(stop_rate) -> str:
    """Check `stop_rate(outputs, stop_ids)`: the fraction of token lists with a stop token in them."""
    outputs = [[5, 8, 2], [5, 8, 9], [6], [], [7, 6, 7]]
    rate = require_answer(stop_rate([list(o) for o in outputs], {2, 6}))
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise WrongAnswer(f"a number from 0 to 1 is wanted, and your code returns a {type(rate).__name__}.")
    if rate == 3:
        raise WrongAnswer("that is how many stopped: divide by how many were asked.")
    if math.isclose(rate, 2 / 5):
        raise WrongAnswer("you look at the last token only: a stop token anywhere ends the answer.")
    if math.isclose(rate, 3 / 4):
        raise WrongAnswer("an empty output did not stop, and it was asked: divide by all five.")
    if math.isclose(rate, 1 / 5):
        raise WrongAnswer("there are several stop tokens: count any of them.")
    if not math.isclose(rate, 3 / 5):
        raise WrongAnswer(f"3 of 5 of the test's outputs hold a stop token, and yours is {rate:.2f}.")
    return "3 of 5 stopped: 0.60."


@checker
def check_mean_loss(mean_loss) -> str:
    """Check `mean_loss(token_losses, labels)`: rows of losses, averaged over all unmasked tokens at once."""
    losses = [[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]]
    labels = [[IGNORE_INDEX, 5, 5, 5], [IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, 5]]
    value = require_answer(mean_loss([list(row) for row in losses], [list(row) for row in labels]))
    value = float(value)
    wrong = {
        110 / 8: "the loss mask is not used: leave out tokens whose label is IGNORE_INDEX.",
        (3.0 + 40.0) / 2: "that is a mean of row means: each token of a short answer would weigh more.",
        49 / 8: "divide by the number of unmasked tokens, not of all tokens.",
        49.0: "that is the sum: divide by the number of unmasked tokens.",
        49 / 2: "that is the sum over the rows: divide by unmasked tokens.",
    }
    match_known_mistake(value, wrong)
    if not math.isclose(value, 49 / 4):
        raise WrongAnswer(f"(2 + 3 + 4 + 40) / 4 = 12.25 is expected, and yours is {value:.2f}.")
    return "12.25: every unmasked token of the batch counts the same."
