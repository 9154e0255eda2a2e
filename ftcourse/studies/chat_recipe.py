"""One pass over the almanac's chats by full fine-tuning and by LoRA: what is elicited, taught and forgotten.

    python -m ftcourse.studies.chat_recipe

Among the chats are facts that the base model cannot know. Learning rates are bracketed on one half of the held-out
questions and tested on the other. A run that is in the output is not repeated. Ten minutes on one core.
"""

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, get_scheduler

from ftcourse.almanac import Fact, all_facts, faq_prompt, load_almanac
from ftcourse.datasets import chat_splits
from ftkit.adapters import attach
from ftkit.batching import Example, global_batch
from ftkit.conversations import encode, encode_text
from ftkit.evaluate import generate_answers, stop_rate
from ftkit.loss import IGNORE_INDEX
from ftkit.models import data_dir, load_base

from .bracketing import SEEDS, TUNING_SEEDS, BracketedStudy, run_bracketed
from .records import make_repeatable, study_parser
from .tasks import exact_and_loss, next_token_loss

BATCH_SIZE = 16  # conversations
STEPS, SHORT, LONG = 48, 32, 144  # just under one pass, two thirds of it, and three passes
WARMUP, MAX_GRAD_NORM = 0.1, 1.0
R, LORA_ALPHA = 8, 16
NEW_FACTS = 20  # that the base model cannot know
SYLLABLES = ("ba", "do", "ka", "lu", "mi", "no", "pe", "ra", "si", "to", "ve", "zu")
BRACKETED = data_dir() / "results" / "chat_recipe.jsonl"


@dataclass(frozen=True)
class Trial:
    method: str  # "full" or "lora", which also trains the embeddings of the chat template's tokens
    steps: int  # of the whole schedule
    lr: float  # peak
    seed: int  # of the order of conversations, the new facts and LoRA's start


FULL, FULL_SHORT, FULL_LONG = (Trial("full", steps, 0.0, -1) for steps in (STEPS, SHORT, LONG))
LORA = Trial("lora", STEPS, 0.0, -1)
STARTS = dict.fromkeys((FULL, FULL_SHORT, FULL_LONG), (3.5e-4, 1e-3, 3e-3)) | {LORA: (2e-3, 6e-3, 1e-2, 1.8e-2)}


def invented_capitals(n: int, seed: int = 0) -> list[Fact]:
    """`n` invented countries and their capitals: facts in the almanac's words that no corpus holds."""
    rng = random.Random(seed)
    words = [a + b for a in SYLLABLES for b in SYLLABLES if a != b]
    names = [word.capitalize() for word in rng.sample(words, 2 * n)]
    domain = load_almanac()["capital"]
    return [Fact(domain, country + "nia", city) for country, city in zip(names[:n], names[n:], strict=True)]


def chats_about(facts: Sequence[Fact], questions: slice = slice(None)) -> list[dict]:
    """A conversation of one question and one answer for each of the facts' (chosen) wordings."""
    return [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": fact.answer}]}
        for fact in facts
        for q in fact.questions[questions]
    ]


def trained_facts(train: Sequence[dict]) -> list[Fact]:
    """The almanac's facts of which every wording of the question is asked in `train`."""
    asked = {m["content"] for row in train for m in row["messages"] if m["role"] == "user"}
    return [fact for fact in all_facts() if all(q in asked for q in fact.questions)]


def chat_token_ids(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[int]:
    """The special tokens that the chat template writes into a conversation."""
    return sorted(set(example["input_ids"]) & set(tokenizer.all_special_ids))


def page_example(tokenizer: PreTrainedTokenizerBase, fact: Fact) -> Example:
    """A fact in the base model's own format, with the answer alone in the loss."""
    prompt = faq_prompt(fact.questions[0])
    example = encode_text(tokenizer, f"{prompt} {fact.answer}")
    start = len(tokenizer.encode(prompt))
    return example | {"labels": [IGNORE_INDEX] * start + example["labels"][start:]}


def run(trial: Trial) -> dict:
    """Train and evaluate; returns the trial with its measures (fractions, and nats per label).

    A tuning run: `validation_exact` and `validation_loss`. A final run: exact match, loss and stop rate on `test` and
    on `heldout_domains`; exact match on facts that were trained (`trained`), on those of them about capitals, and on
    the `new` facts, which an epoch asks twice, and nearly all others three times; on the almanac's facts (`pages`) and
    the new ones (`new_pages`) in the base model's format; and `test_loss_early`, the loss after `SHORT` steps.
    """
    torch.manual_seed(trial.seed)
    model, tokenizer = load_base(data_dir() / "pocket-base")
    splits, new = chat_splits(), invented_capitals(NEW_FACTS, trial.seed)
    held_out = {"validation": splits["test"][::2], "test": splits["test"][1::2]}

    def encoded(chats: Sequence[dict]) -> list[Example]:
        return [encode(tokenizer, row["messages"], tokenizer.chat_template) for row in chats]

    train = encoded([*splits["train"], *chats_about(new)])
    test = encoded(held_out["test"])
    tuned = model
    if trial.method == "lora":
        tokens = chat_token_ids(tokenizer, train[0])
        tuned = attach(model, "lora", r=R, lora_alpha=LORA_ALPHA, trainable_token_indices=tokens)
    early = 0.0
    for step in training_steps(tuned, train, trial):
        if step == SHORT and trial.seed not in TUNING_SEEDS:
            early = exact_and_loss(tuned.eval(), test)[1]
    tuned.eval()
    if trial.seed in TUNING_SEEDS:
        exact, loss = exact_and_loss(tuned, encoded(held_out["validation"]))
        return {**asdict(trial), "validation_exact": round(exact, 4), "validation_loss": round(loss, 4)}
    found = {"test_loss_early": early}
    for name, rows in (("test", held_out["test"]), ("heldout_domains", splits["heldout_domains"])):
        found[f"{name}_exact"], found[f"{name}_loss"] = exact_and_loss(tuned, encoded(rows))
        found[f"{name}_stop"] = stop_rate(generate_answers(tuned, tokenizer, [r["messages"][:-1] for r in rows]))
    known, one = trained_facts(splits["train"]), slice(0, 1)
    capitals = [fact for fact in known if fact.domain.name == "capital"]
    for name, facts in (("trained", known), ("trained_capitals", capitals), ("new", new)):
        found[f"{name}_exact"] = exact_and_loss(tuned, encoded(chats_about(facts, one)))[0]
    for name, facts in (("pages", all_facts()), ("new_pages", new)):
        found[f"{name}_exact"] = exact_and_loss(tuned, [page_example(tokenizer, fact) for fact in facts])[0]
    return {**asdict(trial), **{name: round(value, 4) for name, value in found.items()}}


def training_steps(model: nn.Module, train: Sequence[Example], trial: Trial) -> Iterator[int]:
    """Train by AdamW; yields the number of steps taken, after each."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=trial.lr, weight_decay=0.0)
    schedule = get_scheduler("linear", optimizer, round(WARMUP * trial.steps), trial.steps)
    for step in range(trial.steps):
        model.train()  # the caller may evaluate between two steps
        next_token_loss(model, global_batch(list(train), step, BATCH_SIZE, trial.seed)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield step + 1


def stored(path: Path = BRACKETED) -> BracketedStudy:
    """The committed runs."""
    return BracketedStudy.read(path, Trial)


def main(arguments: list[str] | None = None) -> int:
    given = study_parser("chat_recipe", __doc__, "workers").parse_args(arguments)
    make_repeatable()
    run_bracketed(STARTS, run, given.output, "chat recipe", seeds=SEEDS, workers=given.workers)
    print(f"stored in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
