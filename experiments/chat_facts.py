"""What a published chat model shows before any training: its first loss by place in the answer, healthy and with three
planted bugs, and its answers with and without the generation prompt.

    python -m experiments.chat_facts --data snips

--data is a folder with train.jsonl, as for `experiments.real_model`, from whose wheel the model comes. Writes
data/results/chat_facts.json. A batch is the first eight conversations of a file, the questions are the first of the
almanac's test set.
"""

import argparse
import json
import math
from pathlib import Path

import torch

from experiments.real_model.__main__ import SOURCES, environment
from experiments.real_model.convert import cached_model, find_gguf
from ftkit.batching import pad, read_rows
from ftkit.conversations import find_chat, load_chat
from ftkit.evaluate import stop_token_ids
from ftkit.loss import IGNORE_INDEX
from ftkit.models import data_dir, load_base
from ftkit.overfit import start_loss
from ftkit.parameters import count_parameters

ROWS, MAX_LENGTH = 8, 256
QUESTIONS, NEW_TOKENS = 20, 24


def bugs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch's labels, healthy and broken."""
    labels, padding = batch["labels"], batch["attention_mask"] == 0
    nothing = torch.full_like(labels[:, :1], IGNORE_INDEX)
    return {
        "healthy": labels,
        "shifted": torch.cat([labels[:, 1:], nothing], dim=1),
        "another row's": labels.roll(1, 0),
        "padding in the loss": torch.where(padding, batch["input_ids"], labels),
    }


def measure(model, tokenizer, train: Path) -> dict:
    """The shape of the batch, its uniform baseline, and the start of each variant."""
    batch = pad(read_rows(train, tokenizer, MAX_LENGTH).rows[:ROWS], tokenizer.pad_token_id)
    starts = {name: start_loss(model, {**batch, "labels": labels}) for name, labels in bugs(batch).items()}
    labels = batch["labels"][:, 1:] != IGNORE_INDEX
    with torch.no_grad():
        right = model(**batch).logits[:, :-1].argmax(-1) == batch["labels"][:, 1:]
    return {
        "labels": int(labels.sum()),
        "accuracy": right[labels].float().mean().item(),
        "uniform": math.log(model.config.vocab_size),
        "starts": {name: start._asdict() for name, start in starts.items()},
    }


@torch.no_grad()
def ask(model, tokenizer, questions: list[str], prompted: bool) -> list[str]:
    """Greedy answers, special tokens included, to questions that end with or without the generation prompt."""
    answers = []
    for question in questions:
        messages = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=prompted, return_tensors="pt")
        stops = stop_token_ids(model, tokenizer)
        output = model.generate(
            **ids, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=stops, pad_token_id=stops[0]
        )
        answers.append(tokenizer.decode(output[0, ids["input_ids"].shape[1] :]))
    return answers


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl")
    parser.add_argument("--output", type=Path, default=data_dir() / "results" / "chat_facts.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model, tokenizer = load_base(cached_model())
    sources = {"almanac": find_chat()["train"], args.data.name: args.data / "train.jsonl"}
    questions = [row["messages"][0]["content"] for row in load_chat()["test"]][:QUESTIONS]
    record = {
        "model": f"{find_gguf().name}, dequantised to float32",
        "parameters": count_parameters(model).total,
        "environment": environment(),
        "sources": {name: SOURCES.get(name, SOURCES["chat"]) for name in sources},
        "batches": {name: measure(model, tokenizer, train) for name, train in sources.items()},
        "questions": questions,
        "answers": {name: ask(model, tokenizer, questions, name == "with") for name in ("with", "without")},
    }
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
