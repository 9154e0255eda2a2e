"""Make the course's book: a static site in build/book from the built notebooks and the pages of docs/.

    python -m docs.book                          make it, and check every page
    python -m docs.book 01_gradient_masks        a book of this notebook alone, to look at
    python -m docs.book --output elsewhere

It runs no cell: it shows the outputs that are stored, so build the notebooks first. Every state of the living controls
is drawn, which takes a minute or two. The same notebooks give the same bytes. A book with a fault (a dead link, a
picture without alternative text, something that is loaded from outside) is reported and not kept. Open
build/book/index.html; no server is needed.
"""

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from ftcourse.plots import use_course_style

from . import BookError, check, search
from .links import Links, repository
from .markup import Slugs, markdown
from .notebooks import body_of
from .pages import ROOT, Page, index_body, listed, rendered, title_of
from .pictures import Pictures

STATIC = Path(__file__).resolve().parent / "static"
MARK = "assets/search.js"  # a folder with this file is a book, and may be replaced


def body(page: Page, pictures: Pictures, links: Links) -> str:
    """The text of a page as HTML."""
    if page.source is None:
        text = links.rewrite(index_body(), ROOT)
    elif page.source.suffix == ".ipynb":
        text = links.rewrite(body_of(page.source, pictures), page.source.parent)
    else:
        text = links.rewrite(markdown(page.source.read_text(encoding="utf-8"), Slugs()), page.source.parent)
    return text


def write(folder: Path, notebooks: Path, names: tuple[str, ...] = ()) -> list[str]:
    """Write the book into an empty folder and return its faults (`check.faults`).

    notebooks: the folder with the built ones; names: only these of them. Raises BookError or FileNotFoundError for what
    cannot be shown.
    """
    pages = listed(notebooks, names)
    pictures = Pictures(folder)
    links = Links({page.source: page.file for page in pages if page.source}, pictures, repository())
    use_course_style()
    texts = {}
    for page in tqdm(pages, desc="book", unit="page", leave=False, disable=None):
        texts[page.file] = body(page, pictures, links)
        (folder / page.file).write_text(rendered(page, texts[page.file], pages), encoding="utf-8")
    for path in sorted(STATIC.iterdir()):
        (folder / "assets").mkdir(exist_ok=True)
        shutil.copyfile(path, folder / "assets" / path.name)
    found = search.index((page.file, title_of(texts[page.file]) or page.name, texts[page.file]) for page in pages)
    (folder / MARK).write_text(search.script(found), encoding="utf-8")
    return check.faults(folder)


def make(output: Path, notebooks: Path, names: tuple[str, ...] = ()) -> None:
    """Write the book beside `output` and put it there once it is whole.

    Raises BookError where the folder holds something else, or the book has faults; the old book then stays.
    """
    if output.exists() and any(output.iterdir()) and not (output / MARK).exists():
        raise BookError(f"{output} holds something that is no book: give another --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as draft:
        whole = Path(draft) / "book"
        whole.mkdir()
        if faults := write(whole, notebooks, names):
            raise BookError("\n".join(faults))
        if output.exists():
            output.rename(Path(draft) / "old")
        whole.rename(output)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m docs.book", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NN_topic", help="only these notebooks (default: all)")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "book", help="where to put it (%(default)s)")
    parser.add_argument(
        "--notebooks", type=Path, default=ROOT / "notebooks", help="the folder with the built notebooks (%(default)s)"
    )
    given = parser.parse_args(arguments)
    names = tuple(re.sub(r"\.(ipynb|html)$", "", Path(name).name) for name in given.names)
    try:
        make(given.output, given.notebooks, names)
    except (BookError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    pages = len(list(given.output.glob("*.html")))
    size = sum(path.stat().st_size for path in given.output.rglob("*") if path.is_file())
    print(f"{given.output}: {pages} pages, {size / 1e6:.1f} MB; open {given.output / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
