"""Check a model's tokenizer and chat template, and conversations to train it on, before any training.

    ftkit chat data/pocket-base data/chat/train.jsonl
    ftkit chat MODEL DATA --max_length 1024 --show-mask 1 7
    ftkit chat MODEL DATA --json --allow text-lost

DATA is a file (JSON lines, JSON, Parquet), a folder of them, or a data set on the hub.
Exit code 0: no errors (there may be warnings); 1: errors; 2: MODEL or DATA cannot be read.
"""

import argparse
import json
import os
import sys

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftkit._arguments import parse
from ftkit.conversations import read_source
from ftkit.findings import Finding, allow
from ftkit.models import CustomCodeError, load_causal_lm, load_config, load_tokenizer, resolve_model

from . import (
    RULES,
    Examined,
    as_records,
    check_chat_template,
    check_padding,
    check_tokenizer,
    check_weights,
    examine,
    finding_codes,
    has_errors,
    length_quantiles,
    max_positions,
    report_text,
    token_view,
)


def load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[Finding]]:
    """The model, its tokenizer, and findings about its weights. Raises ValueError or OSError for what cannot be
    opened."""
    source = resolve_model(name)
    try:
        load_config(source)  # first, because it refuses models that need custom code
        tokenizer = load_tokenizer(source)
        model, info = load_causal_lm(source, dtype="auto", output_loading_info=True)
    except CustomCodeError:
        raise
    except Exception as error:  # each file format raises its own types
        first_line = "".join(str(error).strip().splitlines()[:1])  # transformers adds advice for other cases
        raise ValueError(
            f"{source} cannot be opened as a model: {type(error).__name__}: {first_line}. "
            "Give a folder that model.save_pretrained and tokenizer.save_pretrained wrote, or a name on the hub"
        ) from error
    return model, tokenizer, check_weights(model, info)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ftkit chat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="folder or hub name of a model with its tokenizer")
    parser.add_argument("data", metavar="DATA", help="conversations: a file, a folder, or a name on the hub")
    parser.add_argument(
        "--max_length", type=int, default=512, help="tokens at which training truncates an example (%(default)s)"
    )
    parser.add_argument(
        "--show-mask", type=int, nargs="+", metavar="N", default=[], help="show tokens and loss mask of example N"
    )
    parser.add_argument(
        "--allow", nargs="+", metavar="CODE", default=[], help="report these findings as notes, not as errors"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a report")
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    args = parse(parser, arguments)
    if args.max_length < 1:
        parser.error(f"--max_length is {args.max_length}: give a positive number of tokens")
    try:
        source = read_source(args.data)
        model, tokenizer, found = load(args.model)
        allow(found, args.allow, RULES)  # names an unknown code before the work starts
        if wrong := [n for n in args.show_mask if not 1 <= n <= len(source.rows)]:
            raise ValueError(f"--show-mask {wrong[0]}: there are examples 1 to {len(source.rows)}")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    found += check_tokenizer(tokenizer, model) + check_chat_template(tokenizer, model)
    given = {"positions": max_positions(model.config), "places": source.places, "progress": not args.json}
    examined = examine(tokenizer, source.rows, args.max_length, **given)
    found += [f for f in examined.findings if f.code not in finding_codes(found)]  # template findings are said once
    if "vocabulary-exceeds-embedding" not in finding_codes(found):
        found += check_padding(model, tokenizer)
    found = allow(found, args.allow, RULES)
    if args.json:
        record = {"model": args.model, "data": args.data, "format": source.format, "rows": len(source.rows)}
        record |= {"lengths": length_quantiles(examined.lengths), "notes": source.notes}
        print(json.dumps(record | {"ok": not has_errors(found), "findings": as_records(found)}, indent=1))
        return int(has_errors(found))
    print(f"{args.model} and {len(source.rows)} conversations of {args.data} ({source.format})")
    for line in source.notes + describe_lengths(examined, args.max_length):
        print(line)
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for n in args.show_mask:
        row = source.rows[n - 1]
        view = token_view(tokenizer, row["messages"], **extras(row)) if "messages" in row else row["text"]
        print(f"\nexample {n}, {source.places[n - 1]}\n{view.terminal(colour) if 'messages' in row else view}")
    print(report_text(found))
    return int(has_errors(found))


def extras(row: dict) -> dict:
    """What a row gives the template beside its messages."""
    return {"tools": row.get("tools"), "chat_template_kwargs": row.get("chat_template_kwargs")}


def describe_lengths(examined: Examined, max_length: int) -> list[str]:
    lengths = examined.lengths
    if not lengths:
        return []
    truncated = sum(length > max_length for length in lengths)
    parts = ", ".join(f"{name} {value}" for name, value in length_quantiles(lengths).items())
    share = f"{100 * truncated / len(lengths):.1f} % of the examples are truncated at {max_length}"
    return [f"tokens per example: {parts}; {share}"]


if __name__ == "__main__":
    sys.exit(main())
