"""Checkers for 11_speed_ups: batches with little padding, a chunked loss, and a fair comparison of two times."""

import math
from statistics import median

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ftkit.loss import IGNORE_INDEX

from . import WrongAnswer, checker, match_known_mistake, require_answer


class _Widest(TorchDispatchMode):
    """The most rows that a tensor with `vocabulary` columns had."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (self.vocabulary,):
                self.rows = max(self.rows, tensor.numel() // self.vocabulary)
        return result


@checker
def check_chunked_loss(chunked_loss) -> str:
    """Check `chunked_loss(hidden, head, labels, chunk)`: the mean loss, with `chunk` rows of logits at a time."""
    generator = torch.Generator().manual_seed(0)
    rows, width, vocabulary, chunk = 23, 4, 41, 5  # width < chunk: head.T is no logits
    shapes = ((rows, width), (vocabulary, width))
    hidden, head = (torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes)
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    labels[1:12] = IGNORE_INDEX  # one chunk has no label at all, its neighbours few
    hidden, head = hidden.requires_grad_(), head.requires_grad_()
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with _Widest(vocabulary) as seen, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer = require_answer(chunked_loss(hidden, head, labels.clone(), chunk))
    if not isinstance(answer, torch.Tensor) or answer.numel() != 1:
        raise WrongAnswer("one tensor with the loss is expected, so that backward() can start from it.")
    each = F.cross_entropy(hidden @ head.T, labels, reduction="none")
    counted = labels != IGNORE_INDEX
    right = each[counted].mean()
    _name_the_loss(answer, each.detach(), counted, chunk)
    if not torch.isclose(answer, right):
        raise WrongAnswer(f"the full loss is {right:.4f}, and yours {answer:.4f}.")
    if not answer.requires_grad:
        raise WrongAnswer("backward() cannot start from it: add up tensors, without .item() and without no_grad.")
    gradients = [torch.autograd.grad(loss, (hidden, head)) for loss in (answer, right)]
    if not all(torch.allclose(ours, full) for ours, full in zip(*gradients, strict=True)):
        raise WrongAnswer("the loss is right, and its gradient is not that of the full loss.")
    if seen.rows > chunk:
        raise WrongAnswer(f"it has logits of {seen.rows} tokens at once: multiply one chunk of hidden at a time.")
    wide = {t.untyped_storage().data_ptr() for t in kept if t.shape[-1:] == (vocabulary,) and t.dim() == 2}
    if len(wide) > 1:
        raise WrongAnswer(
            "each chunk's logits are kept for the backward pass: call the chunk's loss through "
            "checkpoint(..., use_reentrant=False)."
        )
    return f"{answer:.4f} with its gradients, and never more than {chunk} rows of logits."


def _name_the_loss(answer: torch.Tensor, each: torch.Tensor, counted: torch.Tensor, chunk: int) -> None:
    """Raise `WrongAnswer` for the usual wrong means; each: the losses of all rows, 0 where not counted."""
    whole = len(each) // chunk * chunk
    pairs = list(zip(each.split(chunk), counted.split(chunk), strict=True))
    means = [losses.sum() / count.sum() for losses, count in pairs if count.any()]
    if answer.isnan():
        raise WrongAnswer("nan: a chunk in which every label is IGNORE_INDEX has no mean; sum, and divide at the end.")
    mistakes = {
        torch.stack(means).mean().item(): "a mean of the chunks' means: chunks with few labels weigh too much.",
        (sum(means) / len(pairs)).item(): "a mean of the chunks' means: chunks with few labels weigh too much.",
        each.sum().item(): "that is the sum: divide by the number of labels that are not IGNORE_INDEX.",
        each.mean().item(): "you divide by all tokens: count the labels that are not IGNORE_INDEX.",
        (each[:whole].sum() / counted.sum()).item(): "the last chunk is shorter, and it is missing.",
        (each[:whole].sum() / counted[:whole].sum()).item(): "the last chunk is shorter, and it is missing.",
        (each[:chunk].sum() / counted.sum()).item(): "that is the first chunk alone: add up all of them.",
    }
    match_known_mistake(answer.item(), mistakes)


LENGTHS = [8, 60, 9, 33, 12, 58, 31, 10, 62, 29, 11, 35, 57, 9, 30, 13, 61, 8, 28, 10, 34, 12]  # tokens


@checker
def check_make_batches(make_batches) -> str:
    """Check `make_batches(lengths, batch_size, generator)`: lists of indices, of similar lengths, in random order."""
    size, wanted = 4, -(-len(LENGTHS) // 4)
    found = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        batches = require_answer(make_batches(list(LENGTHS), size, generator))
        batches = [[int(index) for index in batch] for batch in batches]
        seen = sorted(index for batch in batches for index in batch)
        if missing := set(range(len(LENGTHS))) - set(seen):
            raise WrongAnswer(f"example {min(missing)} is in no batch: the last batch may be smaller than the others.")
        if len(seen) > len(LENGTHS):
            raise WrongAnswer("an example is in two batches: an epoch shows each once.")
        if max(map(len, batches)) > size:
            raise WrongAnswer(f"a batch has {max(map(len, batches))} examples, and batch_size is {size}.")
        if len(batches) != wanted:
            raise WrongAnswer(f"{len(batches)} batches of at most {size}, where {wanted} are enough: fill them up.")
        found.append(batches)
    waste = [_padding(batches) for batches in found]
    if max(waste) > 0.2:
        raise WrongAnswer(
            f"up to {max(waste):.0%} of the computed tokens are padding: put examples of similar lengths into a batch."
        )
    longest = [[max(LENGTHS[index] for index in batch) for batch in batches] for batches in found]
    if any(widths in (sorted(widths), sorted(widths, reverse=True)) for widths in longest):
        raise WrongAnswer(
            "the batches come in order of their length, so the model sees short examples first: shuffle the batches."
        )
    if len({str(batches) for batches in found}) == 1:
        raise WrongAnswer("every epoch has the same order: draw it from `generator`.")
    alone = [torch.arange(len(LENGTHS))[start : start + size].tolist() for start in range(0, len(LENGTHS), size)]
    return f"{_padding(alone):.0%} of the tokens were padding in the given order, and {max(waste):.0%} are in yours."


def _padding(batches: list[list[int]]) -> float:
    """The share of places in padded batches that hold padding."""
    places = sum(len(batch) * max(LENGTHS[index] for index in batch) for batch in batches)
    return 1 - sum(LENGTHS[index] for batch in batches for index in batch) / places


class _Machine:
    """A machine on which the old way takes 1.0 s and the new one 0.8 s, and which is not alone.

    Everything is slow at first, each call is 2 % slower than the one before, and now and then another program gets in.
    """

    def __init__(self):
        self.now, self.calls, self.seen = 0.0, 0, set()

    def run(self, way: str) -> None:
        seconds = {"old": 1.0, "new": 0.8}[way] * (1 + 0.02 * self.calls)
        if way not in self.seen:  # compiles, allocates, fills caches
            seconds += 20.0
        if self.calls in (15, 17):  # calls of the new way, where the two take turns
            seconds += 6.0
        self.seen.add(way)
        self.calls += 1
        self.now += seconds


def _timed(order: list[str]) -> dict[str, list[float]]:
    """The seconds of each way on a fresh machine, called in this order."""
    machine, times = _Machine(), {"old": [], "new": []}
    for way in order:
        start = machine.now
        machine.run(way)
        times[way].append(machine.now - start)
    return times


ROUNDS = 9


@checker
def check_time_both(time_both) -> str:
    """Check `time_both(old, new, clock, rounds)`: how many times faster `new` is, on a machine that is not quiet."""
    machine = _Machine()
    given = (lambda: machine.run("old")), (lambda: machine.run("new")), (lambda: machine.now)
    answer = require_answer(time_both(*given, ROUNDS))
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        raise WrongAnswer(f"a number is expected, and your code returns a {type(answer).__name__}.")
    if machine.seen != {"old", "new"}:
        raise WrongAnswer("time both of them: call `old` and `new`.")
    turns, blocks = ["old", "new"] * ROUNDS, ["old"] * ROUNDS + ["new"] * ROUNDS
    right = 1.25
    known = {}
    for order, text in (
        (blocks, "all of `old`, then all of `new`: the machine got slower meanwhile. Let them take turns."),
        (["old", "new", *blocks], "all of `old`, then all of `new`: the machine got slower meanwhile. Take turns."),
    ):
        old, new = (times[-ROUNDS:] for times in _timed(order).values())  # without the warm-up, where there was one
        known[median(old) / median(new)] = text
    for order in (turns, ["old", "new", *turns]):
        old, new = _timed(order).values()
        warm = slice(len(old) - ROUNDS, None)
        slow = "the mean, in which one slow call weighs as much as ten others: take the median."
        known[sum(old[warm]) / sum(new[warm])] = slow
        known[sum(old) / sum(new)] = slow
        known[median(new) / median(old)] = "that is new over old: the speed-up is old time over new."
        known[median(new[warm]) / median(old[warm])] = "that is new over old: the speed-up is old time over new."
        known[old[0] / new[0]] = "that is one call each, the first, which warms up."
    match_known_mistake(float(answer), known)
    if not math.isclose(answer, right, rel_tol=0.04):
        raise WrongAnswer(f"the new way is 1.25 times faster on this machine, and you measure {answer:.2f}.")
    if machine.calls < 2 * ROUNDS:
        raise WrongAnswer(f"{machine.calls} calls for {ROUNDS} rounds of two: time every round.")
    return f"{answer:.2f} times faster, although the machine slowed down by a third while you measured."
