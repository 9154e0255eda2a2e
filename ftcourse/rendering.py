"""Cells of a notebook as HTML that needs nothing from outside: what slides and handouts share."""

import base64
import functools
import html
import re
from collections.abc import Callable, Sequence

import jinja2
import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

# Colours of what a terminal would colour (an error's traceback), dark enough on white.
TERMINAL = """
.ansi-bold { font-weight: bold }
.ansi-red-fg, .ansi-red-intense-fg { color: #a83c00 }
.ansi-green-fg, .ansi-green-intense-fg { color: #00684c }
.ansi-yellow-fg, .ansi-yellow-intense-fg { color: #7a5200 }
.ansi-blue-fg, .ansi-blue-intense-fg { color: #005a8e }
.ansi-magenta-fg, .ansi-magenta-intense-fg { color: #8a3f6c }
.ansi-cyan-fg, .ansi-cyan-intense-fg { color: #17627f }
.ansi-yellow-bg { background: #fff1c9 }
"""
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def has_tag(cell, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def title_of(nb) -> str:
    """The notebook's first heading, without marks; "Notebook" where it has none."""
    for cell in nb.cells:
        if cell.cell_type == "markdown" and (found := re.search(r"^#+ (.+)$", cell.source, re.M)):
            return re.sub(r"[`*$]", "", found[1])
    return "Notebook"


def code_style() -> str:
    """CSS of highlighted code and of coloured terminal text."""
    return HtmlFormatter(style="friendly").get_style_defs(".highlight") + TERMINAL


def render(cells: Sequence, link: Callable[[str], str | None], *, code: bool = True) -> str:
    """Cells as HTML, without prompts; `code=False` leaves out the source of code cells.

    link: what a relative link becomes, or None for one that leads nowhere from here: its words stay.
    """
    body, _ = _exporter(code).from_notebook_node(nbformat.v4.new_notebook(cells=list(map(_portable, cells))))

    def replace(found: re.Match) -> str:
        target = html.unescape(found[1])
        if re.match(r"https?:|#|mailto:", target):
            return found[0]
        new = link(target)
        return f'<a href="{html.escape(new)}">{found[2]}</a>' if new else found[2]

    return re.sub(r'<a href="([^"]*)"[^>]*>(.*?)</a>', replace, body, flags=re.S)


def typeset(latex: str, display: str) -> str:
    """A formula as MathML, which browsers typeset by themselves; as it was written where it cannot be read.

    display: "inline" or "block".
    """
    try:
        from latex2mathml.converter import convert

        return convert(latex.strip(), display=display)
    except Exception:  # not installed, or one of the many errors of its parser
        return f"<code>{html.escape(latex.strip())}</code>"


class _Renderer(IPythonRenderer):
    def inline_math(self, body: str) -> str:
        return typeset(body, "inline")

    def block_math(self, body: str) -> str:
        return typeset(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return typeset(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")


class _Exporter(HTMLExporter):
    """nbconvert's, with formulas typeset: its own leaves them to MathJax, from a network."""

    @jinja2.pass_context
    def markdown2html(self, _context, source: str) -> str:
        return MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(source)


@functools.cache
def _exporter(code: bool) -> HTMLExporter:
    exporter = _Exporter(template_name="basic")  # the cells alone, without a page around them
    exporter.exclude_input = not code
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    return exporter


def _portable(cell):
    """A copy of a cell for a page without a kernel: no live control, and pictures that keep their description."""
    cell = nbformat.from_dict(cell)
    for out in cell.get("outputs", []):
        data = out.get("data", {})
        data.pop(WIDGET_VIEW, None)  # the picture of its first state stands beside it
        if svg := data.get("image/svg+xml"):
            out["data"] = nbformat.from_dict({"text/html": _picture(svg)})
    return cell


def _picture(svg: str) -> str:
    """An SVG as an <img>, which scales as a whole and whose ids cannot meet those of another picture."""
    named = re.search(r'aria-label="([^"]*)"|<title>([^<]*)</title>', svg[:4000])
    text = html.unescape(named[1] or named[2]) if named else ""
    code = base64.b64encode(svg.encode()).decode()
    return f'<img class="figure" alt="{html.escape(text)}" src="data:image/svg+xml;base64,{code}">'
