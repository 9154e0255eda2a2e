"""A built notebook as the body of a page, by nbconvert with the template of this folder."""

import html
import re
from pathlib import Path

import nbformat

from ftcourse.rendering import Exporter, has_tag, headings, is_set_up, plain

from . import BookError
from .controls import living
from .markup import Renderer, Slugs, markdown
from .pictures import Pictures, stored_name

HERE = Path(__file__).resolve().parent
CONTROL = re.compile(r"(\w+)\(.*\): run the cell to (.+)", re.S)  # the repr of an Explorer
PICTURES = ("image/svg+xml", "image/png", "image/jpeg")


def body_of(path: Path, pictures: Pictures) -> str:
    """The notebook as HTML, its pictures stored, and its controls alive where `controls.living` knows them.

    Raises BookError, which names notebook and cell, for what the book cannot show.
    """
    nb = nbformat.read(path, as_version=4)
    where = path.stem
    for number, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown":
            where = plain(([where] + headings(cell))[-1])
            continue
        cell.metadata.fold = fold(cell)
        try:
            cell.outputs = [shown(output, where, path.stem, pictures) for output in cell.get("outputs", [])]
        except BookError as error:
            raise BookError(f"{path.name}, cell {number}: {error}") from error
    exporter = Exporter(Renderer(Slugs()), template_name="book", extra_template_basedirs=[str(HERE / "templates")])
    page, _ = exporter.from_notebook_node(nb)
    return page


def fold(cell) -> str:
    """What stands above a cell's folded code; empty where the code is shown."""
    if is_set_up(cell):
        return "Set-up, which installs the course on Colab"
    return "Show the code" if has_tag(cell, "hide-input") else ""


def shown(output, where: str, notebook: str, pictures: Pictures):
    """An output as the template takes it: HTML instead of pictures and controls."""
    if output.output_type not in ("display_data", "execute_result"):
        return output
    data = output.data
    if control := CONTROL.match(data.get("text/plain", "")):
        data["text/html"] = control_of(*control.groups(), data, where, notebook, pictures)
    elif "text/html" in data:
        data["text/html"] = pictures.lift(data["text/html"], where)
    elif found := next((kind for kind in PICTURES if kind in data), None):
        data["text/html"] = f'<figure class="picture">{picture(found, data[found], where, pictures)}</figure>'
    elif "text/latex" in data:
        data["text/html"] = markdown(data["text/latex"], Slugs())
    return output


def picture(kind: str, data: str, where: str, pictures: Pictures) -> str:
    if kind == "image/svg+xml":
        return pictures.add(data, where).img()
    return f'<img src="data:{kind};base64,{data.strip()}" alt="{html.escape(f"Figure in “{where}”")}">'


def control_of(name: str, hint: str, data: dict, where: str, notebook: str, pictures: Pictures) -> str:
    """An explorer's stored state as HTML: alive where its states can be drawn, else its picture and what it is."""
    if alive := living(notebook, name):
        return alive.html(stored_name(data), where, pictures)
    note = f"A control: in Jupyter, run the cell to {hint}. This is its first state."
    if "image/svg+xml" not in data:
        still = pictures.lift(data["text/html"], where)
        return f'<div class="control">{still}<p class="note">{html.escape(note)}</p></div>'
    drawn = pictures.add(data["image/svg+xml"], where)
    caption = f'<p class="caption" aria-hidden="true">{html.escape(drawn.alt)}</p>'  # a screen reader has read it
    return (
        f'<div class="control"><figure class="picture">{drawn.img()}</figure>{caption}'
        f'<p class="note">{html.escape(note)}</p></div>'
    )
