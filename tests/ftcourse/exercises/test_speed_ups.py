"""The exercises of 11_speed_ups: their solutions are right, stubs are not solved yet, mistakes get their hints."""

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ftcourse.exercises.speed_ups import check_chunked_loss, check_logits_bytes, check_whole_speed_up
from ftkit.loss import IGNORE_INDEX

from .shown import checker_tests


def summed(hidden, head, labels):
    return F.cross_entropy(hidden @ head.T, labels, reduction="sum")


def parts(hidden, labels, chunk):
    return zip(hidden.split(chunk), labels.split(chunk), strict=True)


def count(labels):
    return (labels != IGNORE_INDEX).sum()


def in_chunks(hidden, head, labels, chunk, part=summed):
    return sum(checkpoint(part, h, head, y, use_reentrant=False) for h, y in parts(hidden, labels, chunk))


def solution(hidden, head, labels, chunk):
    return in_chunks(hidden, head, labels, chunk) / count(labels)


def mean_of_means(hidden, head, labels, chunk):
    means = [summed(h, head, y) / count(y) for h, y in parts(hidden, labels, chunk) if count(y)]
    return torch.stack(means).mean()


def with_nan(hidden, head, labels, chunk):
    return in_chunks(hidden, head, labels, chunk, lambda h, w, y: F.cross_entropy(h @ w.T, y)) / 5


def without_the_tail(hidden, head, labels, chunk):
    whole = len(labels) // chunk * chunk
    return in_chunks(hidden[:whole], head, labels[:whole], chunk) / count(labels)


def kept_by_autograd(hidden, head, labels, chunk):
    return sum(summed(h, head, y) for h, y in parts(hidden, labels, chunk)) / count(labels)


def sliced_too_late(hidden, head, labels, chunk):
    logits = hidden @ head.T
    losses = [F.cross_entropy(z, y, reduction="sum") for z, y in parts(logits, labels, chunk)]
    return sum(losses) / count(labels)


class Doubled(torch.autograd.Function):
    """The loss as it is, with twice its gradient."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, upstream):
        return 2 * upstream


EXERCISES = [
    (
        check_logits_bytes,
        lambda batch, tokens, vocabulary, dtype: batch * tokens * vocabulary * dtype.itemsize,
        {
            "how many numbers": lambda b, t, v, dtype: b * t * v,
            "bits": lambda b, t, v, dtype: 8 * b * t * v * dtype.itemsize,
            "not every dtype": lambda b, t, v, dtype: 4 * b * t * v,
            "the batch is missing": lambda b, t, v, dtype: t * v * dtype.itemsize,
            "the vocabulary is missing": lambda b, t, v, dtype: b * t * dtype.itemsize,
            "the tokens are missing": lambda b, t, v, dtype: b * v * dtype.itemsize,
            "not GiB": lambda b, t, v, dtype: b * t * v * dtype.itemsize / 2**30,
            "a number of bytes": lambda b, t, v, dtype: torch.tensor(b * t * v * dtype.itemsize),
            "expected": lambda b, t, v, dtype: b * t * v * dtype.itemsize + 1,
        },
    ),
    (
        check_chunked_loss,
        solution,
        {
            "a mean of the chunks' means": mean_of_means,
            "nan": with_nan,
            "that is the sum": in_chunks,
            "you divide by all rows": lambda h, w, y, chunk: in_chunks(h, w, y, chunk) / len(y),
            "the last chunk is shorter": without_the_tail,
            "the first chunk alone": lambda h, w, y, chunk: summed(h[:chunk], w, y[:chunk]) / count(y),
            "kept for the backward pass": kept_by_autograd,
            "multiply one chunk": sliced_too_late,
            "backward() cannot start": lambda *given: solution(*given).detach(),
            "one tensor": lambda *given: solution(*given).item(),
            "its gradient is not": lambda *given: Doubled.apply(solution(*given)),
            "the full loss is": lambda *given: solution(*given) + 1,
        },
    ),
    (
        check_whole_speed_up,
        lambda factor, share: 1 / (share + (1 - share) / factor),
        {
            "the time left": lambda factor, share: share + (1 - share) / factor,
            "not the evaluation": lambda factor, share: 1 / (1 - share + share / factor),
            "a mean of speed-ups": lambda factor, share: (1 - share) * factor + share,
            "do not multiply so": lambda factor, share: (1 - share) * factor,
            "that is the step's": lambda factor, share: factor,
            "a number is wanted": lambda factor, share: str(factor),
            "3 times faster": lambda factor, share: 7.0,
        },
    ),
]
test_solution, test_stub, test_wrong_answer = checker_tests(EXERCISES)
