"""Do the two classification tasks discriminate? A head on frozen features against the whole model.

    python -m ftkit.studies.classification

Writes one line of raw result for each run to `data/results/classification.jsonl`: the topic task must be
learnable by a head on frozen features, and the truth task only by the whole model.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
import transformers
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification

from ftkit.almanac import data_dir
from ftkit.almanac_sets import topic_task, truth_task
from ftkit.pocket import find_base, load_tokenizer

TASKS = {"topic": topic_task, "truth": truth_task}
EPOCHS = 10
BATCH_SIZE = 16
# The best of 3e-3 and 1e-2 for heads, and of 3e-4 and 1e-3 for whole models, in a trial of one seed.
LR = {"head": 1e-2, "full": 3e-4}
GRID = [("topic", 100, "head"), ("topic", 1000, "head"), ("truth", 1000, "head"), ("truth", 1000, "full")]
SEEDS = (0, 1, 2)


def run(task: str, n_train: int, method: str, seed: int) -> dict:
    """Train on `n_train` rows and judge 1,000 others; returns the settings with `accuracy` and `seconds`.

    `method` is "head" (the base model's features are frozen) or "full". The rows are the same for all seeds,
    which set the head's initial weights and the order.
    """
    sets = TASKS[task](n_train)
    labels = sorted({row["label"] for row in sets["test"]})
    source = find_base(data_dir() / "pocket-base")
    tokenizer = load_tokenizer(source)
    transformers.utils.logging.set_verbosity_error()  # the head is new: that is the point
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=len(labels), trust_remote_code=False
    )
    if method == "head":
        model.base_model.requires_grad_(False)

    def encode(rows: list[dict]) -> tuple[dict, torch.Tensor]:
        inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        return inputs, torch.tensor([labels.index(row["label"]) for row in rows])

    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=LR[method])
    steps = EPOCHS * -(-n_train // BATCH_SIZE)
    schedule = transformers.get_scheduler("linear", optimizer, steps // 10, steps)
    rows, rng, start = list(sets["train"]), random.Random(seed), time.perf_counter()
    for _ in range(EPOCHS):
        rng.shuffle(rows)
        for first in range(0, n_train, BATCH_SIZE):
            inputs, targets = encode(rows[first : first + BATCH_SIZE])
            nn.functional.cross_entropy(model(**inputs).logits, targets).backward()
            nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    seconds = time.perf_counter() - start
    model.eval()
    right = 0
    with torch.no_grad():
        for first in range(0, len(sets["test"]), 100):
            inputs, targets = encode(sets["test"][first : first + 100])
            right += int((model(**inputs).logits.argmax(-1) == targets).sum())
    settings = {"task": task, "n_train": n_train, "method": method, "seed": seed}
    return {**settings, "accuracy": right / len(sets["test"]), "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure whether the classification tasks discriminate.")
    default = data_dir() / "results" / "classification.jsonl"
    parser.add_argument("--output", type=Path, default=default, help="raw results (default: %(default)s)")
    path = parser.parse_args().output
    path.parent.mkdir(parents=True, exist_ok=True)
    todo = [(*settings, seed) for settings in GRID for seed in SEEDS]
    with path.open("w", encoding="utf-8") as file:
        for settings in tqdm(todo, desc="classification", unit="run"):
            file.write(json.dumps(run(*settings)) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
