"""Fine-tune a model with every method on your conversations, and write the results as a table.

    python -m ftcourse.studies.adapters
    python -m ftcourse.studies.adapters --model MODEL --data chats.jsonl --output mine.jsonl

For each method a learning rate is searched with a seed of its own; then other seeds are run at the best one. The raw
runs go to OUTPUT, one JSON object per line, and the table beside it as .md and .json. A run that is in OUTPUT is not
repeated: after an interruption, the same command continues.
"""

import argparse
import functools
import json
import os
import sys
from pathlib import Path

import torch

from ftcourse.studies.records import make_repeatable, read_records, run_missing, sort_records, write_records
from ftcourse.studies.tasks import BATCH_SIZE, base_of
from ftkit.adapters import attach
from ftkit.loading import load_for_training
from ftkit.models import meta_model

from .data import digest, load_conversations
from .methods import ARMS, BASE, GRID, REFERENCE, options_for, rates_to_try
from .table import TUNING_SEED, best_rate, markdown, scores, summarise, unbracketed_note
from .trial import Trial, run

SEEDS = 3


def possible_arms(rows: list[str], model: str) -> list[str]:
    """Return the configurations that the model can take, and print why not the others. No weight is loaded."""
    possible = []
    for name in rows:
        empty = meta_model(base_of(model))  # each anew: attaching changes it
        try:
            attach(empty, ARMS[name].method, **options_for(ARMS[name], empty))
            possible.append(name)
        except ValueError as error:
            print(f"without {name!r}: {error}", file=sys.stderr)
    return possible


def compare(usual: Trial, rows: list[str], seeds: int, lr: float | None, output: Path, workers: int, once) -> None:
    """Search each learning rate unless `lr` is given, then run the seeds; append every run to `output`."""

    def at(row: str, lr: float, seed: int) -> Trial:
        return Trial(**{**vars(usual), "row": row, "lr": lr, "seed": seed})

    def mine() -> list[dict]:
        return same_comparison(read_records(output), usual)

    def search() -> list[Trial]:
        found = mine()
        if lr:
            return [at(row, lr, TUNING_SEED) for row in rows if lr not in scores(found, row)]
        return [
            at(row, each, TUNING_SEED) for row in rows for each in rates_to_try(scores(found, row), ARMS[row].start)
        ]

    while todo := search():
        run_missing(todo, once, output, f"{usual.task}: rates", workers)
    found = mine()
    best = {row: best_rate(found, row) for row in rows}
    # LoRA+ at LoRA's own rate as well: that is how it is tried first, and where it may diverge.
    kept = [row for row in rows if ARMS[row].method == "lora+"] if REFERENCE in rows else []
    final = [
        trial
        for seed in range(seeds)
        for trial in [
            at(BASE, 0.0, seed),
            *(at(row, best[row], seed) for row in rows),
            *(at(row, best[REFERENCE], seed) for row in kept if best[row] != best[REFERENCE]),
        ]
    ]
    run_missing(final, once, output, f"{usual.task}: seeds", workers)
    for row in rows:
        if not lr and (note := unbracketed_note(found, row)):
            print(note, file=sys.stderr)


def same_comparison(records: list[dict], usual: Trial) -> list[dict]:
    """The records of this comparison: same model, data, passes and precision, whatever else the file holds."""
    fields = ("model", "task", "digest", "epochs", "dtype")
    return [r for r in records if all(r[field] == getattr(usual, field) for field in fields)]


def write_tables(output: Path, comparisons: list[Trial]) -> list[Path]:
    """OUTPUT's table as .md and .json, beside it."""
    records = read_records(output)
    tables = {c.task: summarise(same_comparison(records, c), c.task, c.model) for c in comparisons}
    text = "\n".join(f"## {task}\n\n{markdown(lines)}" for task, lines in tables.items())
    paths = [output.with_suffix(".md"), output.with_suffix(".json")]
    for path, content in zip(paths, (text, json.dumps(tables, indent=1) + "\n"), strict=True):
        path.write_text(content, encoding="utf-8")
    return paths


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ftcourse.studies.adapters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="", help="a model folder or hub name (pocket-base)")
    parser.add_argument(
        "--data",
        nargs="+",
        default=["chat-200", "calls-200"],
        help="a .jsonl file of conversations, a folder with train.jsonl and test.jsonl, or the almanac's chat-N and "
        "calls-N (%(default)s)",
    )
    parser.add_argument("--rows", nargs="+", default=list(ARMS), metavar="ROW", help=f"of: {'; '.join(ARMS)} (all)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs of each method at its best rate (%(default)s)")
    parser.add_argument("--epochs", type=int, default=0, help="passes over the data (3; 7 for chat-200)")
    parser.add_argument("--lr", type=float, help="this rate for every method, instead of the search")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the base's weights")
    parser.add_argument("--micro_batch", type=int, default=BATCH_SIZE, help="rows at once, of a step's %(default)s")
    parser.add_argument("--workers", type=int, default=0, help="processes (one a core; one where there is a GPU)")
    parser.add_argument("--output", type=Path, default=Path("adapters.jsonl"), help="raw runs (%(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    given = parser.parse_args(arguments)
    if min(given.seeds, given.micro_batch) < 1 or min(given.epochs, given.workers) < 0:
        parser.error("--seeds and --micro_batch must be at least 1, --epochs and --workers at least 0")
    if unknown := [row for row in given.rows if row not in ARMS]:
        parser.error(f"there is no row {unknown[0]!r}; the rows: {'; '.join(ARMS)}")
    if given.lr is not None and not 0 < given.lr < 10:
        parser.error(f"--lr is {given.lr:g}: give one above 0; the search tries {GRID[0]:g} to {GRID[-1]:g}")
    make_repeatable()
    workers = given.workers or (1 if torch.cuda.is_available() else os.cpu_count() or 1)
    try:
        tokenizer = load_for_training(base_of(given.model)).tokenizer
        sets = {task: load_conversations(task, tokenizer, TUNING_SEED) for task in given.data}
        rows = possible_arms(given.rows, given.model)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if not rows:
        parser.error("no method is left that this model can take")
    comparisons = [
        Trial(given.model, task, BASE, 0.0, 0, given.epochs or each.epochs, given.dtype, digest(task))
        for task, each in sets.items()
    ]
    once = functools.partial(run, micro_batch=given.micro_batch)
    try:
        for usual in comparisons:
            compare(usual, rows, given.seeds, given.lr, given.output, workers, once)
    except KeyboardInterrupt:
        print(f"\nstopped: the runs so far are in {given.output}, and the same command continues", file=sys.stderr)
        return 130
    write_records(given.output, sort_records(read_records(given.output), Trial))
    paths = write_tables(given.output, comparisons)
    print(paths[0].read_text(encoding="utf-8"))
    print(f"stored in {given.output}, {paths[0]} and {paths[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
