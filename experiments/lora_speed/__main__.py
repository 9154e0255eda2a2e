"""Measure one LoRA run three ways on a CUDA device: plain TRL, TRL with Liger's kernels, and Unsloth.

    python -m experiments.lora_speed --model MODEL --unsloth-python unsloth/bin/python
    python -m experiments.lora_speed --model MODEL --contenders trl liger

Each contender trains in a process of its own on the same rows in the same order, without evaluation. The record,
data/results/gpu_lora.json, holds every step's seconds and loss; notebook 11 shows it. Unsloth patches what it finds
and wants older libraries than ftkit, so it has its own environment: see experiments/lora_speed/unsloth.txt.
"""

import argparse
import datetime
import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ftcourse.studies.lora_speed import table
from ftkit.batching import read_rows
from ftkit.conversations import ChatTemplateError, ConversationError
from ftkit.loss import IGNORE_INDEX
from ftkit.models import data_dir, load_tokenizer

from .worker import CONTENDERS, Settings

NEEDS = {"trl": ("trl", "peft"), "liger": ("trl", "peft", "liger_kernel"), "unsloth": ("unsloth",)}
REMEDY = {
    "trl": "pip install -c constraints.txt -e .",
    "liger": "pip install -c constraints.txt -e '.[gpu]'",
    "unsloth": "python3 -m venv unsloth && unsloth/bin/pip install -r experiments/lora_speed/unsloth.txt, then "
    "--unsloth-python unsloth/bin/python",
}
TRIES = 100  # rows looked at for each that is wanted
TAIL = 20  # lines of a failed contender's output that the error shows


class BenchError(RuntimeError):
    """The comparison cannot be made here; the message says what to do."""


def blocks(data: Path, tokenizer, length: int, count: int) -> list[dict[str, list[int]]]:
    """`count` rows of exactly `length` tokens: the conversations of `data`, one after the other, again and again.

    A row without a label is left out: TRL drops it, another trainer may not, and then their steps differ.
    """
    conversations = read_rows(data, tokenizer, max_length=sys.maxsize).rows
    tokens = (
        pair for row in itertools.cycle(conversations) for pair in zip(row["input_ids"], row["labels"], strict=True)
    )
    made = []
    for _ in range(TRIES * count):
        ids, labels = map(list, zip(*itertools.islice(tokens, length), strict=True))
        labels[0] = IGNORE_INDEX  # nothing in the row comes before it
        if any(label != IGNORE_INDEX for label in labels):
            made.append({"input_ids": ids, "labels": labels})
        if len(made) == count:
            return made
    raise BenchError(f"hardly any row of {length} tokens has a token to learn from: give a larger --length")


def check_ready(contenders: list[str], device: str, pythons: dict[str, str]) -> None:
    """Raise BenchError, before anything starts, for a device or a package that is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BenchError(
            "this torch sees no CUDA device. Run it where there is one; "
            "`--device cpu --contenders trl --out FILE` only tries the program out"
        )
    if device == "cpu" and (kernels := [name for name in contenders if name != "trl"]):
        raise BenchError(f"{', '.join(kernels)}: these kernels are compared on CUDA; on a CPU run trl alone")
    find = "import sys, importlib.util as u; print(*(n for n in sys.argv[1:] if u.find_spec(n) is None))"
    for name in contenders:
        command = [pythons[name], "-c", find, *NEEDS[name]]
        try:
            missing = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        except (OSError, subprocess.CalledProcessError) as error:
            raise BenchError(f"{name}: {pythons[name]} is no Python that runs ({error})") from None
        if missing:
            raise BenchError(f"{name}: {pythons[name]} has no {', '.join(missing)}: {REMEDY[name]}")


def measure(settings: Settings, contenders: list[str], pythons: dict[str, str], data: Path) -> dict:
    """The record: settings, date, and what each contender's process wrote. Raises BenchError where one fails."""
    tokenizer = load_tokenizer(settings.model)
    count = settings.batch_size * (settings.steps + settings.warm_up)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        made = blocks(data, tokenizer, settings.length, count)
        rows.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        for name in contenders:
            mine = replace(settings, contender=name, rows=str(rows))
            found[name] = _train(mine, pythons[name], Path(folder))
    shared = {key: value for key, value in asdict(settings).items() if key not in ("contender", "rows")}
    if Path(settings.model).is_dir():
        shared["model"] = Path(settings.model).name  # where it lies is this machine's business
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": date, "settings": shared, "contenders": found}


def _train(settings: Settings, python: str, folder: Path) -> dict:
    given, out = folder / "settings.json", folder / f"{settings.contender}.json"
    given.write_text(json.dumps(asdict(settings)), encoding="utf-8")
    script = Path(__file__).resolve().with_name("worker.py")  # Unsloth's Python need not have ftkit
    command = [python, str(script), str(given), str(out)]
    # In the folder that is thrown away: Unsloth writes a cache of compiled trainers where it is started.
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or not out.exists():
        last = "\n".join((done.stdout + done.stderr).splitlines()[-TAIL:])
        raise BenchError(f"{settings.contender} failed with exit status {done.returncode}:\n{last}")
    return json.loads(out.read_text(encoding="utf-8"))


def _absolute(name: str) -> str:
    """A path that is there, from anywhere; anything else, such as a hub name, as it is."""
    return os.path.abspath(name) if os.path.exists(name) else name


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.lora_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="folder or hub name, the same for all contenders")
    parser.add_argument("--data", type=Path, default=data_dir() / "chat" / "train.jsonl", help="conversations")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--unsloth-python", default=sys.executable, help="the Python that has Unsloth")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--length", type=int, default=1024, help="tokens in a row (1024)")
    parser.add_argument("--batch-size", type=int, default=8, help="rows in a step (8)")
    parser.add_argument("--steps", type=int, default=60, help="steps that count (60)")
    parser.add_argument("--warm-up", type=int, default=10, help="steps before them (10)")
    parser.add_argument("--out", type=Path, help="the record; data/results/gpu_lora.json for a CUDA device")
    given = parser.parse_args(arguments)
    if min(given.length - 1, given.batch_size, given.steps, given.warm_up + 1) < 1:
        parser.error("--length must be at least 2, --batch-size and --steps 1, --warm-up 0")
    if given.device == "cpu" and given.out is None:
        parser.error("a CPU's times are no GPU's: name a file with --out")
    pythons = dict.fromkeys(CONTENDERS, sys.executable) | {"unsloth": _absolute(given.unsloth_python)}
    sizes = {"length": given.length, "batch_size": given.batch_size}
    settings = Settings("", _absolute(given.model), "", given.device, steps=given.steps, warm_up=given.warm_up, **sizes)
    try:
        check_ready(given.contenders, given.device, pythons)
        record = measure(settings, given.contenders, pythons, given.data)
    except (BenchError, ChatTemplateError, ConversationError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    out = given.out or data_dir() / "results" / "gpu_lora.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{table(record)}\nstored in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
