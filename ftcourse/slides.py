"""Slides from notebooks: one HTML file each, which asks nothing from outside: `ftkit slides`.

Each heading starts a slide, and so does text between code and code. Where a slide is too full, its letters get smaller,
and in the end it scrolls. Imports, long code and code that the notebook hides are folded, and solutions are left out.
Open the file in any browser: arrow keys or space turn pages, c shows the contents, f fills the screen.
"""

import argparse
import html
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ftkit._arguments import parse

from .copying import find_notebooks

FOLDER = "ftkit-slides"  # in the working directory
FOLD_LINES = 16  # a cell with more lines of code is folded, unless it is an exercise
PAGE = Path(__file__).with_name("slides.html")


@dataclass
class Slide:
    """title: of the heading that it stands under. continued: that heading stands on an earlier slide."""

    title: str
    continued: bool = False
    cells: list = field(default_factory=list)


def divide(nb) -> list[Slide]:
    """The slides of a notebook, in order, without solutions."""
    from .rendering import has_tag

    pieces = [pair for cell in nb.cells if not has_tag(cell, "solution") for pair in _pieces(cell)]
    slides: list[Slide] = []
    for place, (piece, title) in enumerate(pieces):
        if title or not slides or _opens(pieces, place):
            slides.append(Slide(title or (slides[-1].title if slides else ""), continued=not title))
        slides[-1].cells.append(piece)
    return slides


def _opens(pieces: list, place: int) -> bool:
    """Whether a text without a heading starts a slide: it leads from code to code.

    What stands after the last code of a part says what to notice in it, and a hint belongs under its exercise.
    """
    piece, before = pieces[place][0], pieces[place - 1][0]
    if piece.cell_type != "markdown" or before.cell_type != "code" or "hint" in piece.metadata.get("tags", []):
        return False
    for after, title in pieces[place + 1 :]:
        if title or after.cell_type == "code":
            return not title
    return False


def _pieces(cell):
    """(cell, heading or "") for each part of a text cell that begins with a heading; other cells are one part."""
    from .rendering import plain

    if cell.cell_type != "markdown":
        yield cell, ""
        return
    parts, fenced = [[]], False
    for line in cell.source.splitlines():
        fenced ^= line.lstrip().startswith("```")
        if line.startswith("#") and not fenced and any(parts[-1]):
            parts.append([])
        parts[-1].append(line)
    for lines in parts:
        named = re.match(r"#+ (.+)", lines[0]) if lines else None
        piece = type(cell)({**cell, "source": "\n".join(lines)})
        yield piece, plain(named[1]) if named else ""


def make_page(nb, name: str) -> str:
    """The page with a notebook's slides. name: of its file, which appears nowhere but in the title."""
    import jinja2

    from .rendering import code_style, render, title_of

    slides = [
        {
            "title": html.escape(slide.title),
            "continued": slide.continued,
            "body": "\n".join(_body(cell, render) for cell in slide.cells),
        }
        for slide in divide(nb)
    ]
    page = jinja2.Template(PAGE.read_text(encoding="utf-8"))
    return page.render(title=html.escape(title_of(nb)), name=html.escape(name), style=code_style(), slides=slides)


def _body(cell, render) -> str:
    if cell.cell_type != "code":
        return render([cell], _link)
    code = render([type(cell)({**cell, "outputs": []})], _link)
    lines = len(cell.source.splitlines())
    tags = cell.metadata.get("tags", [])
    set_up = re.match(r"(import|from) ", cell.source)
    if "exercise" not in tags and ("hide-input" in tags or lines > FOLD_LINES or set_up):
        what = f"Code, {lines} line{'s' * (lines != 1)}"
        code = f'<details class="code"><summary>{what}</summary>{code}</details>'
    return code + (render([cell], _link, code=False) if cell.outputs else "")


def _link(target: str) -> str | None:
    """A link to another notebook leads to its slides; what else a notebook links has no place beside them."""
    return f"{target.removesuffix('.ipynb')}.slides.html" if re.fullmatch(r"\w+\.ipynb", target) else None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="ftkit slides", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "notebooks", nargs="*", metavar="NOTEBOOK", help="05, 05_chat_templates or a path.ipynb (default: all)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path(FOLDER), metavar="FOLDER", help="where they go (default: %(default)s)"
    )
    given = parse(parser, arguments)
    try:
        import nbformat

        from . import rendering  # noqa: F401

        paths = find_notebooks(given.notebooks)
        given.output.mkdir(parents=True, exist_ok=True)
        for path in paths:
            file = given.output / f"{path.stem}.slides.html"
            try:
                nb = nbformat.read(path, as_version=4)
            except (ValueError, KeyError, AttributeError) as error:  # NotJSONError and ValidationError among them
                raise OSError(f"{path} is no notebook: {error}") from error
            file.write_text(make_page(nb, path.stem), encoding="utf-8")
            print(f"{file}: {len(divide(nb))} slides", flush=True)
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed: pip install 'ftkit[lab]'", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
