"""Markdown and code as HTML: headings with anchors, wide tables that scroll, mathematics as MathML."""

import html
import re

from latex2mathml.converter import convert
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

from . import BookError

PYTHON_MAGICS = re.compile(r"%%(px|time|timeit|capture)\b.*\n")  # what follows is Python


class Slugs:
    """The anchors of one page's headings: as GitHub makes them, and each only once."""

    def __init__(self):
        self.seen: dict[str, int] = {}

    def new(self, heading: str) -> str:
        """The anchor of a heading, given as HTML."""
        text = html.unescape(re.sub(r"<[^>]+>", "", heading)).lower()
        slug = re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-") or "section"
        count = self.seen[slug] = self.seen.get(slug, -1) + 1
        return f"{slug}-{count}" if count else slug


class Renderer(IPythonRenderer):
    """nbconvert's renderer, with anchors, MathML and tables in a box that scrolls."""

    def __init__(self, slugs: Slugs):
        super().__init__(escape=False, allow_harmful_protocols=False, exclude_anchor_links=True)
        self.slugs = slugs

    def heading(self, text: str, level: int, **_) -> str:
        return f'<h{level} id="{html.escape(self.slugs.new(text))}">{text}</h{level}>\n'

    def table(self, text: str) -> str:
        return f'<div class="scroll"><table>\n{text}</table></div>\n'

    def inline_math(self, body: str) -> str:
        return mathematics(body, "inline")

    def block_math(self, body: str) -> str:
        return mathematics(body, "block")

    def latex_environment(self, name: str, body: str) -> str:
        return mathematics(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")


def mathematics(latex: str, display: str) -> str:
    """A formula as MathML, which browsers typeset by themselves. Raises BookError for one that cannot be read."""
    try:
        found = convert(latex.strip(), display=display)
    except Exception as error:  # latex2mathml has no class of its own for what it cannot read
        raise BookError(f"the formula {latex.strip()!r} cannot be read: {type(error).__name__}") from error
    if unknown := re.search(r">(\\[A-Za-z]+)<", found):  # it passes on a command that it does not know
        raise BookError(f"the formula {latex.strip()!r} has {unknown[1]}, which latex2mathml does not know")
    return found


def markdown(source: str, slugs: Slugs) -> str:
    """Markdown, with HTML in it, as HTML."""
    return MarkdownWithMath(renderer=Renderer(slugs)).render(source)


def code(source: str, language: str = "ipython3") -> str:
    """A cell's source, highlighted. A cell under a magic such as `%%px` is Python below its first line."""
    formatter = HtmlFormatter(cssclass="highlight")
    lexer = get_lexer_by_name(language, stripnl=False)
    if not (magic := PYTHON_MAGICS.match(source)):
        return highlight(source, lexer, formatter)
    first = f'<span class="o">{html.escape(magic[0])}</span>'
    rest = highlight(source[magic.end() :], lexer, HtmlFormatter(nowrap=True))
    return f'<div class="highlight"><pre><span></span>{first}{rest}</pre></div>\n'
