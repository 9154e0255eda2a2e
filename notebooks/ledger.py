"""Write down what the notebooks say: what each promises, and the claims ledger. Nothing here is typed by hand.

    python notebooks/ledger.py           write data/notebooks.json, data/claims.json and the README's tables
    python notebooks/ledger.py --check   say which of them are out of date; write nothing

A notebook's first cell gives its promise, hardware and time; its recap, printed by ftcourse.claims.show_claims, gives
its claims. `make notebooks` does this before it builds the map, which shows both. The README's table of step times
is made from the records that `make bench` stores, and `make bench` does this too.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import nbformat

from experiments.fault_injection.faults import table as drill_table
from experiments.optimizer_speed.report import markdown
from ftcourse.claims import read_claims

ROOT = Path(__file__).resolve().parent.parent
MAP = "00_start_here"
WALK = {  # part -> notebook -> its topic in a word or two; a notebook is planned until it is built
    "Which weights move": {
        "01_gradient_masks": "gradient masks",
        "02_child_tuning": "child-tuning",
        "03_fisher_masks": "Fisher masks",
        "04_freezing": "freezing",
    },
    "A run you can trust": {
        "05_chat_templates": "chat templates",
        "06_optimizer_and_schedule": "optimizer and schedule",
        "07_overfit_one_batch": "overfit one batch",
        "08_full_fine_tune": "full fine-tune",
    },
    "Adapters": {
        "09_lora_from_scratch": "LoRA from scratch",
        "10_adapter_family": "the adapter family",
        "11_speed_ups": "speed-ups",
    },
    "Beyond one device": {
        "12_memory": "memory",
        "13_ddp_to_fsdp": "DDP to FSDP",
        "14_delayed_init_and_tensor_parallel": "delayed init, tensor parallel",
        "15_checkpoints_and_faults": "checkpoints and faults",
        "16_fsdp_fine_tune": "sharded fine-tune",
    },
}


class LedgerError(Exception):
    """A notebook that does not say what the ledger needs. The message is for the author of its source."""


def read_head(nb, name):
    """Title, promise, hardware and time, as the first cell of a built notebook gives them."""
    head = nb.cells[0].source if nb.cells else ""
    parts = {
        "title": r"\A# \d\d · (.+)",
        "promise": r"\A#.+\n+((?:[^-\n#].*\n)+)",
        "hardware": r"^- \*\*Hardware:\*\* ((?:.+\n?)(?:  .+\n?)*)",
        "time": r"^- \*\*Time:\*\* ((?:.+\n?)(?:  .+\n?)*)",
    }
    found = {part: re.search(pattern, head + "\n", re.M) for part, pattern in parts.items()}
    if absent := [part for part, match in found.items() if match is None]:
        raise LedgerError(f"{name}: its first cell gives no {', '.join(absent)}; 01_gradient_masks shows the form")
    return {part: " ".join(match[1].split()).rstrip(".") for part, match in found.items()}


def read_notebooks(folder):
    """(rows of data/notebooks.json, rows of data/claims.json), in the order of the walk.

    Raises LedgerError for a notebook that the walk does not know, that lacks its head, or that says the same
    claim twice.
    """
    places = [(part, name, topic) for part, names in WALK.items() for name, topic in names.items()]
    built = {path.stem for path in folder.glob("*.ipynb")} - {MAP}
    if strangers := sorted(built - {name for _, name, _ in places}):
        raise LedgerError(f"not in WALK of notebooks/ledger.py: {', '.join(strangers)}")
    notebooks, claims = [], []
    for part, name, topic in places:
        row = {"notebook": name, "part": part, "topic": topic, "ready": name in built}
        if name in built:
            nb = nbformat.read(folder / f"{name}.ipynb", as_version=4)
            row |= read_head(nb, name)
            said = [claim for cell in nb.cells for claim in claims_of(cell)]
            if len({claim["claim"] for claim in said}) < len(said):
                raise LedgerError(f"{name} gives a verdict on the same claim twice")
            claims += [{"notebook": name, **claim} for claim in said]
        notebooks.append(row)
    return notebooks, claims


def claims_of(cell):
    """The claims that a cell printed; none where its output is not compared by the tests."""
    if "nbval-ignore-output" in cell.metadata.get("tags", []):
        return []
    printed = [out.text for out in cell.get("outputs", []) if out.output_type == "stream" and out.name == "stdout"]
    return read_claims("".join(printed))


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines)


def notebook_table(notebooks):
    rows = []
    for row in notebooks:
        name = row["notebook"]
        if row["ready"]:
            rows.append([f"[{name}](notebooks/{name}.ipynb)", row["promise"], row["hardware"], row["time"]])
        else:
            rows.append([name, f"*planned:* {row['topic']}", "", ""])
    return table(["notebook", "what it is about", "hardware", "time"], rows)


def claim_table(claims):
    rows = []
    for row in claims:
        verdict = f"{row['verdict']} ({row['because']})" if row["because"] else row["verdict"]
        link = f"[{row['notebook'][:2]}](notebooks/{row['notebook']}.ipynb)"
        rows.append([f"**{verdict}**", row["claim"], row["source"], row["measured"], link])
    return table(["verdict", "claim", "who says so", "measured", "in"], rows)


def bench_tables(folder):
    """The stored benchmark records as tables, one for each kind of device."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("bench_*.json"))]
    return "\n\n".join(map(markdown, records)) or "No record is stored: `make bench` measures your machine."


def between_markers(text, name, content):
    """`text` with `content` between the lines `<!-- name … -->` and `<!-- end of name -->`."""
    pattern = rf"(<!-- {name}\b.*-->\n)(?:.*\n)*?(<!-- end of {name} -->)"
    if len(re.findall(pattern, text)) != 1:
        raise LedgerError(f"README.md needs one pair of markers for {name}")
    return re.sub(pattern, lambda marks: f"{marks[1]}{content}\n{marks[2]}", text)


def written(root=ROOT):
    """What each file should hold: a dict from path to text."""
    notebooks, claims = read_notebooks(root / "notebooks")
    readme = (root / "README.md").read_text(encoding="utf-8")
    readme = between_markers(readme, "notebooks", notebook_table(notebooks))
    readme = between_markers(readme, "claims", claim_table(claims))
    if "<!-- bench" in readme:
        readme = between_markers(readme, "bench", bench_tables(root / "data" / "results"))
    if "<!-- drill" in readme:
        record = json.loads((root / "data" / "results" / "drill.json").read_text(encoding="utf-8"))
        readme = between_markers(readme, "drill", drill_table(record))
    texts = {"data/notebooks.json": notebooks, "data/claims.json": claims}
    texts = {name: json.dumps(rows, indent=1, ensure_ascii=False) + "\n" for name, rows in texts.items()}
    return {root / name: text for name, text in {**texts, "README.md": readme}.items()}


def out_of_date(root=ROOT):
    """The files that do not hold what they should, with what they should hold."""
    return {
        path: text
        for path, text in written(root).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }


def update(root=ROOT):
    """Write the files that are out of date; returns their paths."""
    stale = out_of_date(root)
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
    return list(stale)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    options = parser.parse_args(arguments)
    try:
        stale = list(out_of_date()) if options.check else update()
    except LedgerError as error:
        print(error, file=sys.stderr)
        return 1
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'out of date' if options.check else 'written'}")
    if any(path.suffix == ".json" for path in stale):
        print(f"then rebuild the map, which shows them: python notebooks/build.py {MAP}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
