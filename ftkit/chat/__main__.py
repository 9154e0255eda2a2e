"""Check a model's tokenizer and chat template, and conversations to train it on, before any training.

    ftkit chat data/pocket-base data/chat/train.jsonl
    ftkit chat MODEL DATA.jsonl --max_length 1024 --json

Exit code 0: no errors (there may be warnings); 1: errors; 2: MODEL or DATA.jsonl cannot be read.
"""

import argparse
import json
import sys

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ftkit._arguments import parse
from ftkit.conversations import read_conversations
from ftkit.models import CustomCodeError, load_base, resolve_model

from . import (
    as_records,
    check_chat_template,
    check_dataset,
    check_padding,
    check_tokenizer,
    finding_codes,
    has_errors,
    report_text,
)


def load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Like `ftkit.load_base`, with ValueError or FileNotFoundError for anything that cannot be opened."""
    source = resolve_model(name)
    try:
        return load_base(source)
    except CustomCodeError:
        raise
    except Exception as error:  # each file format raises its own types
        first_line = "".join(str(error).strip().splitlines()[:1])  # transformers adds advice for other cases
        raise ValueError(
            f"{source} cannot be opened as a model: {type(error).__name__}: {first_line}. "
            "Give a folder that model.save_pretrained and tokenizer.save_pretrained wrote, or a name on the hub"
        ) from error


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ftkit chat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="folder or hub name of a model with its tokenizer")
    parser.add_argument("data", metavar="DATA.jsonl", help='JSON lines of {"messages": [...]}')
    parser.add_argument(
        "--max_length", type=int, default=512, help="tokens at which training truncates an example (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a report")
    args = parse(parser, arguments)
    if args.max_length < 1:
        parser.error(f"--max_length is {args.max_length}: give a positive number of tokens")
    try:
        conversations = read_conversations(args.data)
        model, tokenizer = load(args.model)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    found = check_tokenizer(tokenizer, model) + check_chat_template(tokenizer, model)
    in_data = check_dataset(tokenizer, conversations, args.max_length)
    found += [f for f in in_data if f.code not in finding_codes(found)]  # template findings are reported once
    if "vocabulary-exceeds-embedding" not in finding_codes(found):
        found += check_padding(model, tokenizer)
    if args.json:
        record = {"model": args.model, "data": args.data, "rows": len(conversations)}
        print(json.dumps(record | {"ok": not has_errors(found), "findings": as_records(found)}, indent=1))
    else:
        print(f"{args.model} and {len(conversations)} conversations of {args.data}\n{report_text(found)}")
    return int(has_errors(found))


if __name__ == "__main__":
    sys.exit(main())
