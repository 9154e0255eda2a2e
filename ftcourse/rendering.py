"""Cells of a notebook as HTML that needs nothing from outside: what slides, handouts and the book share."""

import functools
import html
import re
from collections.abc import Callable, Sequence

import jinja2
import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

from .svg import picture_html

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
GUARD = '"google.colab" in sys.modules'  # in the cell that installs the course on Colab
PYTHON_MAGICS = re.compile(r"%%(px|time|timeit|capture)\b.*\n")  # what follows is Python
NAMED = re.compile(r"<mi>(?:ln|log|exp|sin|cos|max|min)</mi>(?=<m(?!o\b))")  # a function, its argument not in brackets
LINK = re.compile(
    r"""<a\b(?P<before>[^>]*?)\bhref=(?P<quote>["'])(?P<href>.*?)(?P=quote)(?P<after>[^>]*)>(?P<text>.*?)</a>""", re.S
)


def has_tag(cell, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


def is_set_up(cell) -> bool:
    """Whether a cell is the one that installs the course on Colab, and does nothing elsewhere."""
    return cell.cell_type == "code" and GUARD in cell.source


def plain(heading: str) -> str:
    """A heading in Markdown without marks."""
    return re.sub(r"[`*$]", "", heading)


def headings(cell) -> list[str]:
    """The headings of a text cell, as they are written; comments in its blocks of code are none."""
    text = re.sub(r"^```.*?^```", "", cell.source, flags=re.M | re.S)
    return re.findall(r"^#+ (.+)$", text, re.M) if cell.cell_type == "markdown" else []


def title_of(nb) -> str:
    """The notebook's first heading, without marks; "Notebook" where it has none."""
    return next((plain(found[0]) for found in map(headings, nb.cells) if found), "Notebook")


def code_style() -> str:
    """CSS of highlighted code and of coloured terminal text, on white."""
    return HtmlFormatter(style="friendly").get_style_defs(".highlight") + TERMINAL


def render(cells: Sequence, link: Callable[[str], str | None], *, code: bool = True) -> str:
    """Cells as HTML, without prompts; `code=False` leaves out the source of code cells.

    link: what a relative link becomes, or None for one that leads nowhere from here: its words stay.
    """
    body, _ = _exporter(code).from_notebook_node(nbformat.v4.new_notebook(cells=list(map(_portable, cells))))
    return relinked(body, lambda href, _text: href if re.match(r"https?:|#|mailto:", href) else link(href))


def relinked(page: str, target: Callable[[str, str], str | None]) -> str:
    """A page whose links lead where `target`, given an address and a link's HTML, says; None leaves the words alone."""

    def replace(found: re.Match) -> str:
        href = target(html.unescape(found["href"]), found["text"])
        if href is None:
            return found["text"]
        return f'<a{found["before"]}href="{html.escape(href)}"{found["after"]}>{found["text"]}</a>'

    return LINK.sub(replace, page)


def mathml(latex: str, display: str) -> str:
    """A formula as MathML, which browsers typeset by themselves. display: "inline" or "block".

    Raises ValueError, with the reason, for one that cannot be read, and ImportError without latex2mathml.
    """
    from latex2mathml.converter import convert

    try:
        found = convert(latex.strip(), display=display)
    except Exception as error:  # latex2mathml has no class of its own for what it cannot read
        raise ValueError(f"cannot be read: {type(error).__name__}") from error
    if unknown := re.search(r">(\\[A-Za-z]+)<", found):  # it passes on a command that it does not know
        raise ValueError(f"has {unknown[1]}, which latex2mathml does not know")
    return NAMED.sub(r'\g<0><mspace width="0.17em"></mspace>', found)  # TeX's thin space, which it leaves out


class Renderer(IPythonRenderer):
    """nbconvert's renderer of Markdown, with formulas typeset: its own leaves them to MathJax, from a network."""

    def __init__(self):
        super().__init__(escape=False, allow_harmful_protocols=False, exclude_anchor_links=True)

    def formula(self, latex: str, display: str) -> str:
        """MathML, or the formula as it was written where it cannot be read."""
        try:
            return mathml(latex, display)
        except (ValueError, ImportError):
            return f"<code>{html.escape(latex.strip())}</code>"

    def inline_math(self, body: str) -> str:
        return self.formula(body, "inline")

    def block_math(self, body: str) -> str:
        return self.formula(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return self.formula(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")


def markdown(source: str, renderer: Renderer) -> str:
    """Markdown, with HTML in it, as HTML."""
    return MarkdownWithMath(renderer=renderer).render(source)


def highlighted(source: str, language: str = "ipython3") -> str:
    """A cell's source as HTML. A cell under a magic such as `%%px` is Python below its first line."""
    formatter = HtmlFormatter(cssclass="highlight")
    lexer = get_lexer_by_name(language, stripnl=False)
    if not (magic := PYTHON_MAGICS.match(source)):
        return highlight(source, lexer, formatter)
    first = f'<span class="o">{html.escape(magic[0])}</span>'
    rest = highlight(source[magic.end() :], lexer, HtmlFormatter(nowrap=True))
    return f'<div class="highlight"><pre><span></span>{first}{rest}</pre></div>\n'


class Exporter(HTMLExporter):
    """nbconvert's, with our Markdown and highlighting.

    renderer: of the text cells. The other arguments are HTMLExporter's.
    """

    def __init__(self, renderer: Renderer, **options):
        self.renderer = renderer
        filters = {"highlight_code": lambda source, metadata=None: highlighted(source)}
        super().__init__(filters=filters, **options)

    @jinja2.pass_context
    def markdown2html(self, _context, source: str) -> str:
        return markdown(source, self.renderer)


@functools.cache
def _exporter(code: bool) -> Exporter:
    exporter = Exporter(Renderer(), template_name="basic")  # the cells alone, without a page around them
    exporter.exclude_input = not code
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    return exporter


def _portable(cell):
    """A copy of a cell for a page without a kernel: no live control, and pictures that keep their description.

    An <img> scales as a whole, and its ids cannot meet those of another picture.
    """
    cell = nbformat.from_dict(cell)
    for out in cell.get("outputs", []):
        data = out.get("data", {})
        data.pop(WIDGET_VIEW, None)  # the picture of its first state stands beside it
        if svg := data.get("image/svg+xml"):
            out["data"] = nbformat.from_dict({"text/html": picture_html(svg)})
    return cell
