"""The loss before training of a published model, by place in the answer, healthy and with three planted bugs.

    python -m experiments.start_loss --data snips

--data is a folder with train.jsonl, as for `experiments.real_model`, from whose wheel the model comes. Writes
data/results/start_loss.json. Each batch is the file's first eight conversations.
"""

import argparse
import json
import math
from pathlib import Path

import torch

from experiments.real_model.__main__ import SOURCES, environment
from experiments.real_model.convert import cached_model, find_gguf
from ftkit.batching import pad, read_rows
from ftkit.conversations import find_chat
from ftkit.loss import IGNORE_INDEX
from ftkit.models import data_dir, load_base
from ftkit.overfit import start_loss

ROWS, MAX_LENGTH = 8, 256


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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl")
    parser.add_argument("--output", type=Path, default=data_dir() / "results" / "start_loss.json")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model, tokenizer = load_base(cached_model())
    sources = {"almanac": find_chat()["train"], args.data.name: args.data / "train.jsonl"}
    record = {
        "model": f"{find_gguf().name}, dequantised to float32",
        "parameters": sum(p.numel() for p in model.parameters()),
        "environment": environment(),
        "sources": {name: SOURCES.get(name, SOURCES["chat"]) for name in sources},
        "batches": {name: measure(model, tokenizer, train) for name, train in sources.items()},
    }
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
