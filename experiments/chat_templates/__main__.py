"""Derive the loss mask of every chat template of a folder, and compare it with markers and readings by hand.

    python -m experiments.chat_templates FOLDER

FOLDER holds NAME.jinja files, index.json (where each was published, and its special tokens) and hand.json (masks
found by reading). The record, data/results/chat_templates.json, has one row for each template, without its text.
"""

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from ftkit.conversations.rendering import CHAT
from ftkit.models import data_dir

from .examining import Row, examine, totals

RECORD = data_dir() / "results" / "chat_templates.json"


def make_record(folder: Path) -> Row:
    """The record of a folder of templates. An unexpected exception of one is raised with its name."""
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    hand = {one["name"]: one for one in json.loads((folder / "hand.json").read_text(encoding="utf-8"))}
    rows = []
    for entry in tqdm(index, unit="template", disable=None):
        its = hand.get(entry["name"])
        by_hand = {key: its[key] for key in ("spans", "excluded", "why")} if its else None
        try:
            source = (folder / f"{entry['name']}.jinja").read_text(encoding="utf-8")
            rows.append(examine(entry | entry["special_tokens"], source, by_hand))
        except Exception as error:
            error.add_note(f"with {entry['name']}")
            raise
    return {"conversation": CHAT, "totals": totals(rows), "templates": rows}


def as_text(record: Row) -> str:
    """JSON with one template a line."""
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in record["templates"])
    head = {key: value for key, value in record.items() if key != "templates"}
    parts = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    return "{\n" + ",\n".join(parts) + f',\n"templates": [\n{rows}\n]\n}}\n'


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.chat_templates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with index.json, hand.json and NAME.jinja files")
    parser.add_argument("--out", type=Path, default=RECORD, help="the record")
    given = parser.parse_args(arguments)
    if missing := [name for name in ("index.json", "hand.json") if not (given.folder / name).is_file()]:
        parser.error(f"{given.folder} has no {missing[0]}")
    record = make_record(given.folder)
    given.out.write_text(as_text(record), encoding="utf-8")
    print(json.dumps(record["totals"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
