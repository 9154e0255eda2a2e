"""Merge a PEFT adapter into its base: `ftkit merge ADAPTER OUT` writes an ordinary Hugging Face folder."""

import argparse
import json
import sys
from pathlib import Path

import torch

from ftkit.adapters import MergeError, load_adapter, merge_and_verify
from ftkit.models import load_causal_lm, load_tokenizer, resolve_model

from .export import save_model

SEQUENCES, TOKENS = 2, 64  # of random tokens, on which merged and unmerged logits are compared


def merge_adapter(adapter: Path, folder: Path, base: str = "") -> str:
    """Write the base of `adapter` (or `base`, its folder or name) with the adapter merged in; returns the report.

    Raises FileExistsError, FileNotFoundError, ValueError for another base, or MergeError; then nothing is written.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists: give another folder")
    config = adapter / "adapter_config.json"
    if not config.is_file():
        raise FileNotFoundError(f"{adapter} holds no {config.name}: give the folder of a PEFT adapter")
    base = base or json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{config} names no base model: give its folder or name with --base")
    source = resolve_model(base)
    tokenizer = load_tokenizer(source)
    try:
        model = load_adapter(load_causal_lm(source, dtype="auto"), adapter)
    except ValueError as error:
        raise ValueError(f"{error}; choose another with --base") from None
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (SEQUENCES, TOKENS), generator=torch.Generator().manual_seed(0))
    merged, report = merge_and_verify(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    save_model(merged, source, tokenizer, folder)
    return str(report)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="ftkit merge", description=__doc__)
    parser.add_argument("adapter", type=Path, help="folder of the adapter, such as OUTPUT/adapter")
    parser.add_argument("output", type=Path, help="folder to write; must not exist yet")
    parser.add_argument("--base", default="", help="base model, a name or folder (default: the one the adapter names)")
    given = parser.parse_args(arguments)
    try:
        print(merge_adapter(given.adapter, given.output, given.base))
    except (ValueError, OSError, MergeError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
