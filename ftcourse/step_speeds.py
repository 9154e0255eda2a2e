"""How fast training steps of pocket-base are on this machine: the record that notebook 11 prints.

python -m ftcourse.step_speeds        in data/results/step_speeds.json; seconds, on a quiet machine
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ftkit import load_base, load_chat
from ftkit.batching import global_batch, packed_micro_batches, pad
from ftkit.conversations import encode, training_template
from ftkit.models import data_dir

STORED = "step_speeds.json"
BATCH, WIDTH = 16, 256  # conversations in a batch, tokens of a packed sequence


def fastest(function: Callable, *args, repeats: int) -> float:
    """Seconds of the fastest of `repeats` calls after one that warms up: what other programs do only ever adds."""
    function(*args)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(*args)
        times.append(time.perf_counter() - start)
    return min(times)


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def measure(repeats: int = 30) -> dict[str, float | str]:
    """FLOP/s of a matrix product, tokens per second of three kinds of batch, and milliseconds of a norm."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, tokenizer = load_base(data_dir() / "pocket-base")
    template = training_template(tokenizer)
    rows = load_chat(data_dir() / "chat")["train"]
    examples = [encode(tokenizer, row["messages"], template) for row in rows]
    batches = [global_batch(examples, step, BATCH, 0) for step in range(len(examples) // BATCH)]
    lengths = [[len(example["input_ids"]) for example in batch] for batch in batches]
    worst = max(range(len(batches)), key=lambda n: max(lengths[n]) * BATCH / sum(lengths[n]))  # the most padding
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(batch: dict[str, torch.Tensor]) -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    ids = torch.randint(1024, (4, 128))
    square, x, weight = torch.randn(1024, 1024), torch.randn(4096, 512), torch.rand(512)
    (packed,) = packed_micro_batches(batches[worst], BATCH, WIDTH, 0, 0, 1)
    tokens = sum(lengths[worst])
    return {
        "torch": torch.__version__,
        "processor": f"one core, {platform.machine()}",
        "flops": 2 * 1024**3 / fastest(torch.mm, square, square, repeats=repeats),
        "full": ids.numel() / fastest(step, {"input_ids": ids, "labels": ids}, repeats=repeats),
        "padded": tokens / fastest(step, pad(batches[worst], 0), repeats=repeats),
        "packed": tokens / fastest(step, packed, repeats=repeats),
        "eager_ms": 1e3 * fastest(rms_norm, x, weight, repeats=repeats),
        "compiled_ms": 1e3 * fastest(torch.compile(rms_norm), x, weight, repeats=repeats),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ftcourse.step_speeds", description=__doc__.splitlines()[0])
    output = data_dir() / "results" / STORED
    parser.add_argument("--output", type=Path, default=output, help="where to store it (%(default)s)")
    given = parser.parse_args(arguments)
    found = {name: value if isinstance(value, str) else float(f"{value:.3g}") for name, value in measure().items()}
    given.output.write_text(json.dumps(found, indent=1) + "\n")
    print(given.output.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
