"""Write the table of memory in this folder's README.md from the stored record.

python -m experiments.notebook_memory    makes the record
python deploy/memory_table.py            writes the table
"""

import json
import re
from pathlib import Path

from ftcourse.copying import source_dir
from ftkit.models import data_dir

PAGE = Path(__file__).resolve().parent / "README.md"
RECORD = data_dir() / "results" / "notebook_memory.json"
BLOCK = re.compile(r"(<!-- memory: written by memory_table.py -->\n).*(?=<!-- end of memory -->)", re.S)
MIB, GIB = 2**20, 2**30


def on_binder(total: int) -> str:
    """Whether so many bytes fit into a session there: 1 GiB is guaranteed, and 2 GiB are the most."""
    if total <= GIB:
        return "fits"
    return "as a rule, within 2 GiB" if total <= 2 * GIB else "**no**"


def names() -> set[str]:
    return {path.stem for path in source_dir().glob("*.ipynb")}


def table(record: dict) -> str:
    """The table in Markdown, the largest first."""
    rows = sorted(record["notebooks"].items(), key=lambda item: -item[1]["peak"])
    lines = ["| notebook | peak with JupyterLab | on Binder |", "| --- | --- | --- |"]
    for name, measured in rows:
        total = measured["peak"] + record["lab"]
        lines.append(f"| {name} | {total / MIB:,.0f} MiB | {on_binder(total)} |")
    lines += [f"| {name} | not measured yet | |" for name in sorted(names() - set(record["notebooks"]))]
    lab = f"JupyterLab's server is {record['lab'] / MIB:.0f} MiB of each"
    return "\n".join(lines) + f"\n\n{lab}. Measured on {record['date']}: {record['machine']}.\n"


def write(page: Path = PAGE, record: Path = RECORD) -> None:
    """Put the table between its markers."""
    new = table(json.loads(record.read_text(encoding="utf-8")))
    page.write_text(BLOCK.sub(lambda found: f"{found[1]}{new}", page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()
