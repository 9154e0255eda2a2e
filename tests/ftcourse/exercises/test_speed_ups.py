"""The exercises of 11_speed_ups: their solutions are right, stubs are not solved yet, mistakes get their hints."""

from statistics import mean, median

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ftcourse.exercises.speed_ups import check_chunked_loss, check_make_batches, check_time_both
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


def by_length(lengths, size, generator, shuffle=True, last=True):
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    batches = batches if last else [batch for batch in batches if len(batch) == size]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()] if shuffle else batches


def at_random(lengths, size, generator):
    order = torch.randperm(len(lengths), generator=generator).tolist()
    return [order[i : i + size] for i in range(0, len(order), size)]


def always_so(lengths, size, generator):
    return by_length(lengths, size, torch.Generator().manual_seed(3))


def twice(lengths, size, generator):
    batches = by_length(lengths, size, generator)
    return [*batches, batches[0]]


def times_of(old, new, clock, rounds, turns=True, warm_up=True):
    order = [old, new] * warm_up + ([old, new] * rounds if turns else [old] * rounds + [new] * rounds)
    times = {old: [], new: []}
    for function in order:
        start = clock()
        function()
        times[function].append(clock() - start)
    return [each[warm_up:] for each in times.values()]


def fair(old, new, clock, rounds):
    first, second = times_of(old, new, clock, rounds)
    return median(first) / median(second)


def in_blocks(old, new, clock, rounds, **how):
    first, second = times_of(old, new, clock, rounds, turns=False, **how)
    return median(first) / median(second)


def by_mean(old, new, clock, rounds, **how):
    first, second = times_of(old, new, clock, rounds, **how)
    return mean(first) / mean(second)


def once(old, new, clock, rounds):
    first, second = times_of(old, new, clock, 1, warm_up=False)
    return first[0] / second[0]


EXERCISES = [
    (
        check_make_batches,
        by_length,
        {
            "of the computed tokens are padding": at_random,
            "shuffle the batches": lambda *given: by_length(*given, shuffle=False),
            "is in no batch": lambda *given: by_length(*given, last=False),
            "in two batches": twice,
            "batch_size is 4": lambda lengths, size, generator: by_length(lengths, 8, generator),
            "are enough": lambda lengths, size, generator: by_length(lengths, 2, generator),
            "the same order": always_so,
        },
    ),
    (
        check_chunked_loss,
        solution,
        {
            "a mean of the chunks' means": mean_of_means,
            "nan": with_nan,
            "that is the sum": in_chunks,
            "you divide by all tokens": lambda h, w, y, chunk: in_chunks(h, w, y, chunk) / len(y),
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
        check_time_both,
        fair,
        {
            "Let them take turns": lambda *given: in_blocks(*given, warm_up=False),
            "Take turns": in_blocks,
            "take the median": by_mean,
            "new over old": lambda *given: 1 / fair(*given),
            "that is one call each": once,
            "call `old` and `new`": lambda old, new, clock, rounds: 1.25,
            "a number is expected": lambda *given: str(fair(*given)),
            "1.25 times faster": lambda *given: fair(*given) + 1,
            "time every round": lambda old, new, clock, rounds: fair(old, new, clock, 1) * 0 + 1.25,
        },
    ),
]
test_solution, test_stub, test_wrong_answer = checker_tests(EXERCISES)
