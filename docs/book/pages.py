"""Which pages the book has, in which order, and what stands around their text."""

import html
import re
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from ftcourse.contents import CONTENTS, OPTIONAL, START, Table, notebook_table, route_table

from .markup import Slugs, markdown
from .templates import template

ROOT = Path(__file__).resolve().parents[2]
DOCS = ("programs", "library", "claims", "costs")  # first, in this order; then what else lies in docs/
HEADINGS = re.compile(r'<h2 id="([^"]+)">(.*?)</h2>', re.S)
TITLE = re.compile(r"<h1[^>]*>(.*?)</h1>", re.S)


@dataclass(frozen=True)
class Page:
    """A page: its file, the source that it is made from (None for the index), the part that it stands in, its name in
    the contents, and what stands above its text."""

    file: str
    source: Path | None
    part: str
    name: str
    origin: str = ""


def listed(notebooks: Path, names: tuple[str, ...] = ()) -> list[Page]:
    """The pages in reading order: the index, the notebooks by parts, then the pages of docs/.

    notebooks: the folder with the built ones; names: only these of them. Raises FileNotFoundError for one that is not
    built.
    """
    ordered = [(START, "", "start here")]
    ordered += [(name, part, topic) for part, topics in CONTENTS.items() for name, topic in topics.items()]
    if unknown := set(names) - {name for name, _, _ in ordered}:
        raise FileNotFoundError(f"no notebook named {', '.join(sorted(unknown))}: see CONTENTS in ftcourse/contents.py")
    pages = [Page("index.html", None, "", "The course")]
    for name, part, topic in ordered:
        source = (notebooks / f"{name}.ipynb").resolve()
        if names and name not in names:
            continue
        if not source.exists():
            raise FileNotFoundError(f"{name}.ipynb is not built yet: make notebooks")
        number = name.partition("_")[0]
        shown = f"{number} · {topic}{' (optional)' if name in OPTIONAL else ''}"
        pages.append(Page(f"{name}.html", source, part, shown, f"notebooks/{name}.ipynb"))
    sources = {path.stem: path for path in sorted((ROOT / "docs").glob("*.md"))}
    for stem in [*DOCS, *(stem for stem in sources if stem not in DOCS)]:
        heading = re.match(r"# (.+)", sources[stem].read_text(encoding="utf-8"))
        pages.append(
            Page(f"{stem}.html", sources[stem], "Reference", heading[1] if heading else stem, f"docs/{stem}.md")
        )
    return pages


def book_title() -> str:
    """The README's heading."""
    return (ROOT / "README.md").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def index_body() -> str:
    """The index page: what the README promises, the routes, and every notebook with its promise and time.

    Its links are those of the README and of the notebooks, to be rewritten like theirs.
    """
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    promise = re.split(r"^## ", readme, maxsplit=1, flags=re.M)[0]
    slugs = Slugs()
    parts = [
        markdown(promise, slugs),
        markdown(
            "The book shows every notebook as it was run, with its outputs. To run the cells, solve the exercises and "
            "have them checked, open the notebooks in Jupyter.\n\n"
            f"[Start here]({START}.ipynb)\n\n## Routes\n",
            slugs,
        ),
        _table(route_table()),
        markdown("## All notebooks\n", slugs),
        _table(notebook_table()),
    ]
    return "\n".join(parts)


def _table(table: Table) -> str:
    """A table of the course as HTML."""
    return f'<div class="scroll">{table._repr_html_()}</div>'


def rendered(page: Page, body: str, pages: list[Page]) -> str:
    """The page as a whole: contents, search, its text, and the way to the pages before and after it.

    body: the text as HTML, links rewritten.
    """
    place = pages.index(page)
    parts: dict[str, list[Page]] = {}
    for other in pages:
        parts.setdefault(other.part, []).append(other)
    return template("page.html.j2").render(
        book=book_title(),
        title=title_of(body) or page.name,
        page=page,
        parts=parts,
        sections=[(anchor, Markup(_plain(heading))) for anchor, heading in HEADINGS.findall(body)],
        body=Markup(body),
        alive="data-control" in body,
        before=pages[place - 1] if place else None,
        after=pages[place + 1] if place + 1 < len(pages) else None,
    )


def title_of(body: str) -> str:
    """The text of a body's first heading."""
    found = TITLE.search(body)
    return html.unescape(_plain(found[1])) if found else ""


def _plain(heading: str) -> str:
    """A heading without its tags; entities stay."""
    return re.sub(r"<[^>]+>", "", heading).strip()
