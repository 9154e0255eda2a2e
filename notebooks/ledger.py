"""Collect what the built notebooks state, and write the generated tables of the README and of docs/.

    python notebooks/ledger.py           write what is out of date
    python notebooks/ledger.py --check   list what is out of date and write nothing; exit status 1 if there is any

It writes data/notebooks.json and data/claims.json, and the parts between markers of three pages:

- README.md: the table of notebooks and the number of claims by verdict
- docs/claims.md: the claims ledger
- docs/costs.md: step times (data/results/bench_*.json), fault injection (data/results/drill.json), throughput beside
  TRL's (data/results/throughput.jsonl) and growth (data/results/growth.jsonl), with the picture docs/growth.svg

A notebook's first cell gives its promise, hardware and time; its recap, printed by ftcourse.claims.Ledger, gives
its claims. `make notebooks` runs this before it builds 00_start_here, which shows both; `make bench` and `make drill`
run it after they stored their records.
"""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

import nbformat

from experiments.fault_injection.faults import table as fault_table
from experiments.growth.__main__ import stored as read_records
from experiments.growth.picture import svg as growth_picture
from experiments.growth.report import markdown as growth_tables
from experiments.optimizer_speed.report import markdown as speed_table
from experiments.throughput.report import markdown as throughput_tables
from ftcourse.claim_cards import BADGES
from ftcourse.claims import TOPICS, VERDICTS, read_claims
from ftcourse.contents import CONTENTS

ROOT = Path(__file__).resolve().parent.parent
MAP = "00_start_here"  # shows what the others state, so it is built last


class LedgerError(Exception):
    """A notebook or page lacks what the ledger needs; the message says what to add."""


def read_notebooks(folder):
    """Read every built notebook.

    Returns:
        (rows of data/notebooks.json, rows of data/claims.json), in the order of CONTENTS.

    Raises:
        LedgerError: a notebook is not in CONTENTS, its first cell is incomplete, or it states a claim twice.
    """
    places = [(part, name, topic) for part, names in CONTENTS.items() for name, topic in names.items()]
    built = {path.stem for path in folder.glob("*.ipynb")} - {MAP}
    if unknown := sorted(built - {name for _, name, _ in places}):
        raise LedgerError(f"not in CONTENTS of ftcourse/contents.py: {', '.join(unknown)}")
    notebooks, claims = [], []
    for part, name, topic in places:
        row = {"notebook": name, "part": part, "topic": topic, "ready": name in built}
        if name in built:
            nb = nbformat.read(folder / f"{name}.ipynb", as_version=4)
            row |= read_head(nb, name)
            found = [claim for cell in nb.cells for claim in claims_of(cell)]
            if len({claim["claim"] for claim in found}) < len(found):
                raise LedgerError(f"{name} gives a verdict on the same claim twice")
            claims += [{"notebook": name, **claim} for claim in found]
        notebooks.append(row)
    return notebooks, claims


def read_head(nb, name):
    """Title, promise, hardware and time, from the first cell of a built notebook. Raises LedgerError without one."""
    head = nb.cells[0].source if nb.cells else ""
    parts = {
        "title": r"\A# \d\d\w? · (.+)",
        "promise": r"\A#.+\n+((?:[^-\n#].*\n)+)",
        "hardware": r"^- \*\*Hardware:\*\* ((?:.+\n?)(?:  .+\n?)*)",
        "time": r"^- \*\*Time:\*\* ((?:.+\n?)(?:  .+\n?)*)",
    }
    found = {part: re.search(pattern, head + "\n", re.M) for part, pattern in parts.items()}
    if absent := [part for part, match in found.items() if match is None]:
        raise LedgerError(f"{name}: its first cell gives no {', '.join(absent)}; 01_gradient_masks shows the form")
    return {part: " ".join(match[1].split()).rstrip(".") for part, match in found.items()}


def claims_of(cell):
    """The claims that a cell printed or showed. None from a cell whose output the tests do not compare."""
    if "nbval-ignore-output" in cell.metadata.get("tags", []):
        return []
    outputs = cell.get("outputs", [])
    printed = [out.text for out in outputs if out.output_type == "stream" and out.name == "stdout"]
    shown = [out.get("data", {}).get("text/plain", "") for out in outputs]
    return read_claims("\n".join(["".join(printed), *shown]))


def out_of_date(root=ROOT):
    """Files whose content is not what it should be: a dict from path to the text that belongs there."""
    return {
        path: text
        for path, text in expected_files(root).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }


def update(root=ROOT):
    """Write the files that are out of date; returns their paths."""
    stale = out_of_date(root)
    for path, text in stale.items():
        path.write_text(text, encoding="utf-8")
    return list(stale)


def expected_files(root=ROOT):
    """What each file should hold: a dict from path to text. Raises LedgerError for a page without its markers."""
    notebooks, claims = read_notebooks(root / "notebooks")
    results = root / "data" / "results"
    faults, grown = (
        json.loads((results / "drill.json").read_text(encoding="utf-8")),
        read_records(results / "growth.jsonl"),
    )
    pages = {
        "README.md": {"notebooks": notebook_table(notebooks), "verdicts": verdict_counts(claims)},
        "docs/claims.md": {"claims": claim_tables(claims)},
        "docs/costs.md": {
            "bench": speed_tables(results),
            "drill": fault_table(faults),
            "throughput": throughput_tables(read_records(results / "throughput.jsonl")),
            "growth": growth_tables(grown),
        },
    }
    rows = {"data/notebooks.json": notebooks, "data/claims.json": claims}
    texts = {name: json.dumps(found, indent=1, ensure_ascii=False) + "\n" for name, found in rows.items()}
    if grown:
        texts["docs/growth.svg"] = growth_picture(grown)
    for page, parts in pages.items():
        texts[page] = (root / page).read_text(encoding="utf-8")
        for name, content in parts.items():
            texts[page] = between_markers(texts[page], name, content, page)
    return {root / name: text for name, text in texts.items()}


def between_markers(text, name, content, page):
    """`text` with `content` between the lines `<!-- name … -->` and `<!-- end of name -->`."""
    pattern = rf"(<!-- {name}\b.*-->\n)(?:.*\n)*?(<!-- end of {name} -->)"
    if len(re.findall(pattern, text)) != 1:
        raise LedgerError(f"{page} needs one pair of markers for {name}")
    return re.sub(pattern, lambda marks: f"{marks[1]}{content}\n{marks[2]}", text)


def notebook_table(notebooks):
    """The README's table: link, promise, and minutes with exercises. The notebooks give hardware and run time."""
    rows = []
    for row in notebooks:
        name = row["notebook"]
        if row["ready"]:
            minutes = re.search(r"\d+ minutes|an hour|\d+ hours", row["time"])
            rows.append([f"[{name}](notebooks/{name}.ipynb)", row["promise"], minutes[0] if minutes else row["time"]])
        else:
            rows.append([name, f"*planned:* {row['topic']}", ""])
    return table(["notebook", "what it is about", "time"], rows)


def verdict_counts(claims):
    """How many claims have each verdict, in one line."""
    counts = Counter(row["verdict"] for row in claims)
    return " · ".join([f"{len(claims)} claims", *(f"{name} {counts[name]}" for name in VERDICTS if counts[name])])


def claim_tables(claims):
    """The claims of each verdict, folded, then a heading and a table for each topic that has claims."""
    parts = ["### By verdict\n\n" + "\n".join(claim_lists(claims))]
    for topic in TOPICS:
        rows = []
        for row in (row for row in claims if row["topic"] == topic):
            verdict = f"{row['verdict']} ({row['because']})" if row["because"] else row["verdict"]
            measured = [row["model"], row["seeds"] or "—", row["measured"]]
            mark = BADGES[row["verdict"]][2]
            rows.append([f"{mark} **{verdict}**", row["claim"], row["source"], *measured, link(row["notebook"])])
        if rows:
            head = ["verdict", "claim", "source", "tested on", "seeds", "measured", "in"]
            parts.append(f"### {topic[0].upper()}{topic[1:]}\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def claim_lists(claims):
    """For each verdict that some claim has, a folded list of its claims: a filter that needs no script."""
    for verdict in VERDICTS:
        rows = [row for row in claims if row["verdict"] == verdict]
        if rows:
            lines = [f"- {row['claim']} ({link(row['notebook'])})" for row in rows]
            head = f"<summary>{BADGES[verdict][2]} {verdict}: {len(rows)}</summary>"
            yield "\n".join(["<details>", head, "", *lines, "", "</details>"])


def link(notebook):
    return f"[{notebook.partition('_')[0]}](../notebooks/{notebook}.ipynb)"


def speed_tables(folder):
    """The stored records of optimizer step times as tables, one for each kind of device."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("bench_*.json"))]
    return "\n\n".join(map(speed_table, records)) or "No record is stored: `make bench` measures your machine."


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is out of date")
    options = parser.parse_args(arguments)
    try:
        stale = list(out_of_date()) if options.check else update()
    except LedgerError as error:
        print(error, file=sys.stderr)
        return 1
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'out of date' if options.check else 'written'}")
    if any(path.suffix == ".json" for path in stale):
        print(f"then rebuild 00_start_here, which shows them: python notebooks/build.py {MAP}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
