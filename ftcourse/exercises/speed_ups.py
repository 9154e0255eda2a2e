"""Checkers for 11_speed_ups: the bytes of the logits, a loss in chunks, and what a faster step does to a run."""

import math

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ftkit.loss import IGNORE_INDEX

from . import WrongAnswer, checker, match_known_mistake, require_answer


@checker
def check_logits_bytes(logits_bytes) -> str:
    """Check `logits_bytes(batch, tokens, vocabulary, dtype)`: the bytes of one tensor of logits."""
    batch, tokens, vocabulary = 3, 50, 700
    for dtype in (torch.float32, torch.bfloat16):
        answer = require_answer(logits_bytes(batch, tokens, vocabulary, dtype))
        if isinstance(answer, bool) or not isinstance(answer, int | float):
            raise WrongAnswer(f"a number of bytes is wanted, and your code returns a {type(answer).__name__}.")
        numbers = batch * tokens * vocabulary
        right = numbers * dtype.itemsize
        mistakes = {
            numbers: "that is how many numbers there are: multiply by the bytes of each.",
            8 * right: "those are bits: a byte has eight.",
            right / batch: "the batch is missing: every row of it has logits of its own.",
            right / vocabulary: "the vocabulary is missing: each token has a number for every token there is.",
            right / tokens: "the tokens are missing: each of them has its own logits.",
            right / 2**30: "bytes are wanted, not GiB.",
        }
        if dtype != torch.float32:
            mistakes |= {4 * numbers: "not every dtype has 4 bytes: dtype.itemsize knows how many."}
        match_known_mistake(float(answer), mistakes)
        if answer != right:
            raise WrongAnswer(f"expected {right:,} bytes of {dtype}, and yours is {answer:,}.")
    return "batch × tokens × vocabulary numbers, each of dtype.itemsize bytes."


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
        raise WrongAnswer("one tensor with the loss is wanted, so that backward() can start from it.")
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
        raise WrongAnswer(f"it has logits of {seen.rows} rows at once: multiply one chunk of hidden at a time.")
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
        each.sum().item(): "that is the sum: divide by the number of labels that count.",
        each.mean().item(): "you divide by all rows: count the labels that are not IGNORE_INDEX.",
        (each[:whole].sum() / counted.sum()).item(): "the last chunk is shorter, and it is missing.",
        (each[:whole].sum() / counted[:whole].sum()).item(): "the last chunk is shorter, and it is missing.",
        (each[:chunk].sum() / counted.sum()).item(): "that is the first chunk alone: add up all of them.",
    }
    match_known_mistake(answer.item(), mistakes)


@checker
def check_whole_speed_up(whole_speed_up) -> str:
    """Check `whole_speed_up(step_speed_up, evaluation_share)`: how many times faster the whole run is."""
    for factor, share in ((3.0, 0.4), (2.0, 0.25), (4.0, 0.0), (2.0, 1.0)):
        answer = require_answer(whole_speed_up(factor, share))
        if isinstance(answer, bool) or not isinstance(answer, int | float):
            raise WrongAnswer(f"a number is wanted, and your code returns a {type(answer).__name__}.")
        left = share + (1 - share) / factor  # of the old time
        mistakes = {
            left: "that is the time left, as a part of the old: the speed-up is old time over new.",
            1 / ((1 - share) + share / factor): "the steps get faster, not the evaluation.",
            (1 - share) * factor + share: "a mean of speed-ups: add up times, and divide the old by the new.",
            (1 - share) * factor: "times do not multiply so: add up what evaluation and steps take now.",
            factor: "that is the step's: evaluation takes as long as before.",
        }
        if not math.isclose(answer, 1 / left):
            match_known_mistake(float(answer), mistakes)
            raise WrongAnswer(f"steps {factor:g} times faster, evaluation {share:.0%} of the old time: {1 / left:.3f}.")
    return "old time over new; as the steps get faster, what is left tends to the evaluation."
