"""The tasks of the studies and their training loop: chat questions, and whether a statement is true.

Shapes: B examples of a batch, T tokens (padded on the right), V vocabulary, C classes.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import transformers
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase, get_scheduler

from ftcourse.almanac import all_facts, faq_prompt
from ftcourse.datasets import chat_with_validation, low_resource_chat, truth_task, truth_with_validation
from ftkit.batching import Example, global_batch, pad, steps_per_epoch, unmasked_tokens
from ftkit.conversations import encode, training_template
from ftkit.loss import IGNORE_INDEX, summed_cross_entropy, token_losses
from ftkit.models import data_dir, load_base, load_tokenizer, resolve_model

EVAL_ROWS = 64  # in one forward pass
TRUTH_ROWS = 500  # of the test set, evaluated after every epoch
HEAD = r"^(score|classifier)\."  # what a classifier adds to the base model


@dataclass(frozen=True)
class Task:
    model: nn.Module
    train: list[Example]
    epochs: int
    loss: Callable[[nn.Module, list[Example]], torch.Tensor]  # mean over the examples' labels, in nats
    # `evaluate(model, *splits)`: each split's exact match (a fraction) and loss (nats per label), as "test_exact",
    # "test_loss"; without splits, those of all but "validation".
    evaluate: Callable[..., dict[str, float]]


def load_task(name: str, seed: int, base: str | None = None, *, validation: bool = False) -> Task:
    """Return a fresh model and its data: "chat-N" or "truth-N" with N training examples, chosen by the seed.

    Args:
        validation: divide what is held out into a "validation" split, to choose settings on, and "test". They share
            no fact under any two seeds. Without it, "test" is all that is held out.

    Raises:
        ValueError: for another name.
    """
    kind, _, n = name.partition("-")
    if kind not in ("chat", "truth") or not n.isdecimal():
        raise ValueError(f"the task is {name!r}, but should be chat-N or truth-N, such as chat-96")
    return (_chat if kind == "chat" else _truth)(int(n), seed, base, validation)


def epochs(n: int) -> int:
    """Return a number of epochs in which about 1,500 examples are seen, at least 5 so that there is a curve."""
    return min(10, max(5, 1500 // n))


def _chat(n: int, seed: int, base: str | None, validation: bool) -> Task:
    """Exact match, end of turn included, on new questions and in domains that were not trained on."""
    make = chat_with_validation if validation else low_resource_chat
    model, tokenizer = load_base(base)
    model.float()  # bfloat16 moments would be another study
    template = training_template(tokenizer)
    splits = {
        split: [encode(tokenizer, row["messages"], template) for row in rows] for split, rows in make(n, seed).items()
    }

    def evaluate(model: nn.Module, *names: str) -> dict[str, float]:
        found = {}
        for split in names or ("test", "heldout_domains"):
            found[f"{split}_exact"], found[f"{split}_loss"] = exact_and_loss(model, splits[split])
        return found

    return Task(model, splits["train"], epochs(n), next_token_loss, evaluate)


def next_token_scores(model: nn.Module, rows: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, T - 1, V) in float32, and the labels (B, T - 1) that they should predict."""
    batch = {name: tensor.to(model.device) for name, tensor in pad(rows, 0).items()}
    labels = batch.pop("labels")[:, 1:]
    return model(**batch, use_cache=False).logits[:, :-1].float(), labels


@torch.no_grad()
def exact_and_loss(model: nn.Module, rows: Sequence[Example]) -> tuple[float, float]:
    """The fraction of rows whose labels are all the likeliest tokens, as in greedy decoding, and nats per label."""
    exact, total, tokens = 0, 0.0, 0
    for first in range(0, len(rows), EVAL_ROWS):
        logits, labels = next_token_scores(model, list(rows[first : first + EVAL_ROWS]))
        masked = labels == IGNORE_INDEX
        # Greedy decoding gives the whole answer exactly when every token of it is the likeliest one.
        exact += int(((logits.argmax(-1) == labels) | masked).all(-1).sum())
        total += float(summed_cross_entropy(logits, labels))
        tokens += int((~masked).sum())
    return exact / len(rows), total / tokens


def next_token_loss(model: nn.Module, rows: list[Example]) -> torch.Tensor:
    """Mean over the rows' labels, in nats."""
    logits, labels = next_token_scores(model, rows)
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX)


def _truth(n: int, seed: int, base: str | None, validation: bool) -> Task:
    """Is a statement true? Asked of facts that no training row is about."""
    source = resolve_model(base)
    tokenizer = load_tokenizer(source)
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # the head is new: that is the point
    model = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=2, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    transformers.utils.logging.set_verbosity(before)
    # The head reads the last token that is not this one.
    pad_id = model.config.pad_token_id = (
        tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    )
    texts = truth_with_validation(n, seed, n_test=TRUTH_ROWS) if validation else truth_task(n, seed, TRUTH_ROWS)
    splits = {
        split: [
            {"input_ids": tokenizer(row["text"])["input_ids"], "labels": [int(row["label"] == "true")]} for row in rows
        ]
        for split, rows in texts.items()
    }

    def scores(model: nn.Module, rows: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.tensor([row["labels"][0] for row in rows])  # (B,)
        batch = pad([{**row, "labels": row["input_ids"]} for row in rows], pad_id)
        return model(batch["input_ids"], batch["attention_mask"]).logits.float(), labels  # (B, C)

    def loss(model: nn.Module, rows: list[Example]) -> torch.Tensor:
        return nn.functional.cross_entropy(*scores(model, rows))

    def evaluate(model: nn.Module, *names: str) -> dict[str, float]:
        found = {}
        for split in names or ("test",):
            rows, right, total = splits[split], 0, 0.0
            for first in range(0, len(rows), EVAL_ROWS):
                logits, labels = scores(model, rows[first : first + EVAL_ROWS])
                right += int((logits.argmax(-1) == labels).sum())
                total += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
            found |= {f"{split}_exact": right / len(rows), f"{split}_loss": total / len(rows)}
        return found

    return Task(model, splits["train"], epochs(n), loss, evaluate)


BATCH_SIZE = 16
WEIGHT_DECAY = 0.01
WARMUP = 0.1  # share of all steps; then the learning rate falls
MAX_GRAD_NORM = 1.0  # of the whole gradient, before it is masked


def training_steps(
    task: Task,
    optimizer: torch.optim.Optimizer,
    seed: int,
    schedule: str = "linear",
    warmup: float = WARMUP,
    micro_batch: int = BATCH_SIZE,
    batch_size: int = BATCH_SIZE,
    max_grad_norm: float = MAX_GRAD_NORM,
) -> Iterator[float]:
    """Train the task's model for its epochs; yields the loss of each step after it is taken, in nats per label.

    `seed` is of the rows' order; `schedule` a name that transformers' `get_scheduler` knows; `warmup` a share of
    all steps, which may be over 1; `micro_batch` how many rows go through the model at once, of the `batch_size` rows
    of a step; `max_grad_norm` may be infinite.
    """
    steps = task.epochs * steps_per_epoch(task.train, batch_size)
    scheduler = get_scheduler(schedule, optimizer, round(warmup * steps), steps)
    for step in range(steps):
        task.model.train()  # a caller may evaluate between two steps
        batch = global_batch(task.train, step, batch_size, seed)
        total = 0.0
        for first in range(0, len(batch), micro_batch):
            rows = batch[first : first + micro_batch]
            loss = task.loss(task.model, rows) * (unmasked_tokens(rows) / unmasked_tokens(batch))
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(task.model.parameters(), max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        yield total


def knowledge_by_domain(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, float]]:
    """Return what the model still knows in its pretraining format, the almanac's FAQ pages, by domain.

    `pages_right`: fraction of facts each token of whose answer is the likeliest, given the question and the answer's
    tokens before it. `pages_loss`: mean over those tokens, in nats.
    """
    facts = all_facts()
    right, loss = defaultdict(list), defaultdict(list)
    for first in range(0, len(facts), EVAL_ROWS):
        chunk = facts[first : first + EVAL_ROWS]
        prompts = [faq_prompt(fact.questions[0]) for fact in chunk]
        ids = [tokenizer.encode(f"{p} {fact.answer}") for p, fact in zip(prompts, chunk, strict=True)]
        logits, labels = next_token_scores(model, [{"input_ids": row, "labels": row} for row in ids])
        losses = token_losses(logits, labels)  # (B, T - 1)
        hits = logits.argmax(-1) == labels
        for row, (fact, prompt) in enumerate(zip(chunk, prompts, strict=True)):
            answer = slice(len(tokenizer.encode(prompt)) - 1, len(ids[row]) - 1)
            right[fact.domain.name].append(bool(hits[row, answer].all()))
            loss[fact.domain.name] += losses[row, answer].tolist()
    return {
        "pages_right": {domain: round(statistics.fmean(each), 4) for domain, each in right.items()},
        "pages_loss": {domain: round(statistics.fmean(each), 4) for domain, each in loss.items()},
    }


def base_of(model: str) -> str:
    return resolve_model(model or data_dir() / "pocket-base")  # whatever FTKIT_MODEL says: records name their model
